"""AP50 of masks without scores: matched by COCO's own evaluator, and known for every set of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from pycocotools import mask as rle

from analysis.gcg.dataset import GcgDataset
from analysis.scoring.coco import coco_results
from analysis.scoring.metrics import coco_evaluation

MOST = 100  # masks of an image that count
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 2_000_000  # numbers held at a time


@dataclass(frozen=True)
class RankedMasks:
    """Predicted masks in the order in which COCO's evaluator ranks equal scores: by image id, then as they were given.

    Attributes:
        image: place of each mask's image in the dataset.
        right, wrong: what each counts as; neither, where it lies in a crowd.
        true: of each image in the dataset's order, true masks but those of crowds.
    """

    image: Int[np.ndarray, " p"]
    right: Bool[np.ndarray, " p"]
    wrong: Bool[np.ndarray, " p"]
    true: Int[np.ndarray, " images"]

    def ap50(self, counts: Integer[np.ndarray, "draws images"]) -> Float[np.ndarray, " draws"]:
        """AP at IoU 0.5 of sets of images, given how often each image is in them; nan of one without true masks."""
        parts = np.array_split(counts, max(1, counts.shape[0] * len(self.image) // AT_ONCE))
        return np.concatenate([self._ap50(part.astype(float)) for part in parts if len(part)])

    def _ap50(self, counts: np.ndarray) -> np.ndarray:
        weights, true = counts[:, self.image], counts @ self.true
        right, wrong = np.cumsum(weights * self.right, axis=1), np.cumsum(weights * self.wrong, axis=1)
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = np.full(len(counts), np.nan)
        for draw in np.flatnonzero(true > 0):
            places = np.searchsorted(right[draw] / true[draw], RECALLS, side="left")
            reached = places[places < len(self.image)]
            found[draw] = precision[draw, reached].sum() / len(RECALLS)
        return found


def rank_masks(dataset: GcgDataset, predicted: Mapping[str, Sequence[dict[str, Any]]]) -> RankedMasks:
    """Match predicted masks (by image id, compressed run-length codes) with the true ones as COCO does at IoU 0.5.

    Every mask has the score 1, as in the public evaluator: the format knows no scores.
    """
    results = [
        result
        for image, rank in zip(dataset.images, dataset.ranks, strict=True)
        for result in coco_results(rank, 1, predicted[image.id], [1.0] * len(predicted[image.id]))
    ]
    settings = {"iouThrs": np.array([0.5]), "areaRng": [[0, 1e10]], "areaRngLbl": ["all"], "maxDets": [MOST]}
    evaluation = coco_evaluation(_truth(dataset), results, catIds=[1], **settings)
    place = {rank: number for number, rank in enumerate(dataset.ranks)}
    image, right, wrong, true = [], [], [], np.zeros(len(dataset), dtype=int)
    for matched in filter(None, evaluation.evalImgs):
        number = place[matched["image_id"]]
        hit, passed_over = matched["dtMatches"][0] > 0, matched["dtIgnore"][0].astype(bool)
        image += [number] * len(hit)
        right += list(hit & ~passed_over)
        wrong += list(~hit & ~passed_over)
        true[number] = int((np.asarray(matched["gtIgnore"]) == 0).sum())
    return RankedMasks(np.array(image, dtype=int), np.array(right, dtype=bool), np.array(wrong, dtype=bool), true)


def _truth(dataset: GcgDataset) -> dict[str, Any]:
    """The dataset as COCO's dict; an image's id is its place among the files' own ids."""
    images, annotations = [], []
    for image, rank in zip(dataset.images, dataset.ranks, strict=True):
        height, width = image.size or (1, 1)  # asked for, and used for polygons alone
        images.append({"id": rank, "height": height, "width": width})
        for code, crowd in zip(image.masks, image.crowds, strict=True):
            about = {"id": len(annotations) + 1, "image_id": rank, "category_id": 1, "iscrowd": int(crowd)}
            area, box = float(rle.area(code)), [float(side) for side in rle.toBbox(code)]
            annotations.append(about | {"segmentation": code, "area": area, "bbox": box})
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
