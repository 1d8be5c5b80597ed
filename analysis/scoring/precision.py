"""COCO's AP and AR for any multiset of the images, so that they have intervals and paired differences.

COCO's own evaluator matches once; what it does from there, ranking all detections of a category and reading precision
at 101 recalls, is done here for many resamples of the images at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer
from pycocotools.cocoeval import COCOeval

from analysis.scoring.coco import CocoDataset
from analysis.scoring.metrics import AP_AR, NOTHING, Interval, coco_evaluation, percentile_interval, resamples
from core.errors import GroundingError

DRAWS = 200
AT_ONCE = 4_000_000  # numbers held at a time
AREAS = {"all": "", "small": "_S", "medium": "_M", "large": "_L"}  # COCO's name -> our columns' ending


@dataclass(frozen=True)
class RankedDetections:
    """The detections of one category and size in the order of their scores, the first of equals first.

    Attributes:
        image: place of each detection's image in the dataset.
        right, wrong: at each of t thresholds of IoU, what it counts as; neither, where it lies in a crowd or is of
            another size.
        true: objects of each image, without crowds and other sizes.
    """

    image: Int[np.ndarray, " p"]
    right: Bool[np.ndarray, "t p"]
    wrong: Bool[np.ndarray, "t p"]
    true: Int[np.ndarray, " images"]

    def scores(
        self, counts: Integer[np.ndarray, "draws images"], recalls: Float[np.ndarray, " r"]
    ) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
        """AP and AR of sets of images, given how often each image is in them; nan of a set without true objects."""
        parts = np.array_split(counts, max(1, counts.shape[0] * self.right.size // AT_ONCE))
        found = [self._scores(part.astype(float), recalls) for part in parts if len(part)]
        return np.concatenate([ap for ap, _ in found]), np.concatenate([ar for _, ar in found])

    def _scores(self, counts: np.ndarray, recalls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        true, thresholds = counts @ self.true, len(self.right)
        ap, ar = np.full((2, len(counts)), np.nan)
        held = true > 0
        if len(self.image) == 0 or not held.any():
            ap[held] = ar[held] = 0.0
            return ap, ar
        weights = counts[held][:, None, self.image]
        right, wrong = np.cumsum(weights * self.right, axis=-1), np.cumsum(weights * self.wrong, axis=-1)
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        recall = right / true[held][:, None, None]
        # one search for all rows: each row's recalls, which lie in 0..1, are moved behind those of the row before
        rows = 2.0 * np.arange(recall.shape[0] * thresholds)
        moved = recall.reshape(len(rows), -1) + rows[:, None]
        places = np.searchsorted(moved.ravel(), (recalls + rows[:, None]).ravel(), side="left").reshape(len(rows), -1)
        places -= (np.arange(len(rows)) * len(self.image))[:, None]
        padded = np.concatenate([precision.reshape(len(rows), -1), np.zeros((len(rows), 1))], axis=1)
        reached = np.take_along_axis(padded, places, axis=1)
        ap[held] = reached.reshape(-1, thresholds, len(recalls)).mean(axis=(1, 2))
        ar[held] = recall[..., -1].mean(axis=1)
        return ap, ar


@dataclass(frozen=True)
class MaskScores:
    """What a system's masks are worth, for any multiset of the images.

    Attributes:
        ranked: by COCO's name of a size, the detections of each category.
        recalls: at which precision is read.
        n_images: in the dataset.
        seed: of the bootstrap.
    """

    ranked: Mapping[str, tuple[RankedDetections, ...]] = field(repr=False)
    recalls: Float[np.ndarray, " r"] = field(repr=False)
    n_images: int
    seed: int = 0

    def of(self, counts: Integer[np.ndarray, "draws images"]) -> dict[str, Float[np.ndarray, " draws"]]:
        """`AP_AR`'s names to shares for sets of images, given how often each image is in them: means over the
        categories that are there; nan where the sets hold no object of that size.
        """
        found: dict[str, np.ndarray] = {}
        for area, ending in AREAS.items():
            pairs = [one.scores(counts, self.recalls) for one in self.ranked[area]]
            for name, columns in zip(("AP", "AR"), zip(*pairs, strict=True), strict=True):
                found[f"{name}{ending}"] = _mean_of_there(np.stack(columns))
        return {name: found[name] for name in AP_AR}

    @cached_property
    def values(self) -> dict[str, float]:
        """The dataset's own numbers, equal to COCO's."""
        return {name: float(each[0]) for name, each in self.of(np.ones((1, self.n_images), dtype=int)).items()}

    @cached_property
    def resampled(self) -> dict[str, Float[np.ndarray, " draws"]]:
        """The numbers of `DRAWS` resamples of the images, the same ones for every system of a dataset."""
        return self.of(resamples(self.n_images, DRAWS, self.seed))

    def interval(self, name: str) -> Interval:
        """One of `AP_AR` with its bootstrap interval over images, centred as `resampled_interval` describes and kept to
        what a share can be.
        """
        found = percentile_interval(self.values[name], self.resampled[name], centred=True)
        return Interval(found.value, *np.clip((found.low, found.high), 0.0, 1.0).tolist())


def mask_scores(results: Sequence[dict[str, Any]], dataset: CocoDataset, *, seed: int = 0) -> MaskScores:
    """Match masks with a dataset's objects as COCO does, ready to be scored on any multiset of its images.

    Args:
        results, dataset: as in `analysis.scoring.metrics.mask_ap_ar`.
        seed: of the bootstrap.
    """
    known = {image.id for image in dataset.images}
    evaluation = coco_evaluation(dataset.to_coco(), [result for result in results if result["image_id"] in known])
    return MaskScores(_rank(evaluation, dataset), np.asarray(evaluation.params.recThrs), len(dataset), seed)


def mask_difference(first: MaskScores, second: MaskScores, name: str) -> Interval:
    """One of `AP_AR` of the second minus that of the first, on the same resampled images.

    Raises:
        GroundingError: scores of different numbers of images, or of different seeds.
    """
    if (first.n_images, first.seed) != (second.n_images, second.seed):
        raise GroundingError(
            f"scores of {first.n_images} and {second.n_images} images (seeds {first.seed} and {second.seed}) cannot be "
            "paired; score the same dataset with one seed"
        )
    apart = second.resampled[name] - first.resampled[name]
    return percentile_interval(second.values[name] - first.values[name], apart, centred=True)


def mask_table(scores: Mapping[str, MaskScores], reference: str) -> pd.DataFrame:
    """AP and AR by size of every system in percent, each with its interval and its difference from one system.

    Returns:
        `method`, `metric`, `value`, `low`, `high`, then `difference` with `_low` and `_high`, empty for the reference;
        nothing for sizes of which the dataset has no object.

    Raises:
        GroundingError: the reference is none of the systems.
    """
    if reference not in scores:
        raise GroundingError(f"there is no row {reference!r} to compare with; the rows are {', '.join(scores)}")
    rows = []
    for label, own in scores.items():
        for name in AP_AR:
            if np.isnan(own.values[name]):
                continue
            apart = NOTHING if label == reference else mask_difference(scores[reference], own, name)
            numbers = [100 * x for one in (own.interval(name), apart) for x in (one.value, one.low, one.high)]
            rows.append((label, name, *numbers))
    ends = ["difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high", *ends])


def _rank(evaluation: COCOeval, dataset: CocoDataset) -> dict[str, tuple[RankedDetections, ...]]:
    """The evaluator's matches, which lie in the order of categories, sizes and images."""
    settings = evaluation.params
    shape = (len(settings.catIds), len(settings.areaRng), len(settings.imgIds))
    matches = np.empty(len(evaluation.evalImgs), dtype=object)
    matches[:] = evaluation.evalImgs
    places = {image.id: place for place, image in enumerate(dataset.images)}
    most = settings.maxDets[-1]
    return {
        area: tuple(
            _ranked([one for one in images if one is not None], places, len(settings.iouThrs), most)
            for images in matches.reshape(shape)[:, number]
        )
        for number, area in enumerate(settings.areaRngLbl)
    }


def _ranked(matches: list[dict[str, Any]], places: Mapping[int, int], thresholds: int, most: int) -> RankedDetections:
    image, scores, true = [np.zeros(0, dtype=int)], [np.zeros(0)], np.zeros(len(places), dtype=int)
    hit, passed = [np.zeros((thresholds, 0), dtype=bool)], [np.zeros((thresholds, 0), dtype=bool)]
    for one in matches:
        place = places[one["image_id"]]
        own = np.asarray(one["dtScores"][:most], dtype=float)
        image.append(np.full(len(own), place))
        scores.append(own)
        hit.append(np.asarray(one["dtMatches"])[:, :most] > 0)
        passed.append(np.asarray(one["dtIgnore"])[:, :most].astype(bool))
        true[place] = int((np.asarray(one["gtIgnore"]) == 0).sum())
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    found, ignored = np.concatenate(hit, axis=1)[:, order], np.concatenate(passed, axis=1)[:, order]
    return RankedDetections(np.concatenate(image)[order], found & ~ignored, ~found & ~ignored, true)


def _mean_of_there(columns: Float[np.ndarray, "c draws"]) -> Float[np.ndarray, " draws"]:
    """The mean over the categories that are in a set of images, nan where there is none."""
    there = ~np.isnan(columns)
    total, number = np.where(there, columns, 0.0).sum(axis=0), there.sum(axis=0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
