"""Every true object ends in exactly one bin: not said, no match, attention missed, segmenter missed, or counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from pycocotools import mask as rle
from scipy.optimize import linear_sum_assignment

from analysis.scoring.coco import CocoDataset, annotation_mask, annotation_rle
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import Interval, difference_interval, ratio_interval
from core.pipeline import Grounding

BINS = ("not said", "no match", "attention missed", "segmenter missed", "counted")
"""In the order in which an object can get lost:

- not said: no phrase is left for it, and the answer does not name its category once more than there are phrases;
- no match: the answer names its category, and no phrase was matched to it (no noun phrase found, or none alike);
- attention missed: a phrase speaks of it, its point does not lie on the object, and its mask is another's;
- segmenter missed: the point lies on the object, and the mask's IoU with it is below the threshold;
- counted: the mask of its phrase has at least that IoU with it.
"""
BOUNDS = ("oracle point", "oracle mask")
IOU = 0.5


@dataclass(frozen=True)
class Ledger:
    """The bins of a run's images; arrays are in the order of the dataset's images.

    Attributes:
        bins: int [images, bins], objects in each of `BINS`.
        bounds: int [images, 2], objects that would be counted if the points of the objects that are spoken of were true
            (the segmenter prompted in their middle), and if their masks were.
        crowds: crowd annotations, which are in no bin.
    """

    bins: np.ndarray
    bounds: np.ndarray
    crowds: int

    @property
    def n_objects(self) -> int:
        """True objects, crowds left out."""
        return int(self.bins.sum())

    def number(self, column: str) -> int:
        """Objects in one of `BINS`, or within one of `BOUNDS`."""
        return int(self._column(column).sum())

    def share(self, column: str, *, seed: int = 0) -> Interval:
        """The share of one of `BINS` or `BOUNDS` among all true objects, with its bootstrap interval over images."""
        return ratio_interval(self._column(column), self.bins.sum(axis=1), seed=seed)

    def difference(self, other: Ledger, column: str, *, seed: int = 0) -> Interval:
        """The other's share minus this one's, paired over images."""
        above = (self._column(column), other._column(column))
        return difference_interval(above, (self.bins.sum(axis=1), other.bins.sum(axis=1)), seed=seed)

    def _column(self, column: str) -> np.ndarray:
        return self.bounds[:, BOUNDS.index(column)] if column in BOUNDS else self.bins[:, BINS.index(column)]


def keep_ledger(
    records: Iterable[tuple[str, Grounding]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
    *,
    oracle: Mapping[int, Sequence[float]],
    iou: float = IOU,
) -> Ledger:
    """Where each true object of a dataset ends.

    Phrases are matched to categories as in the pilot study, then within a category one to one to its objects: as many
    counted as possible, then as many points on their objects as possible. An image without a record counts as one whose
    answer says nothing. Of several masks of a phrase the last counts.

    Args:
        records: (image id, grounding) pairs.
        dataset, matcher: the ground truth, and what matches phrases to its categories.
        oracle: image id to the IoU of each true object's mask from a true point, see `analysis.ledger.oracle`.
        iou: from which a mask counts.
    """
    known = {int(record_id): grounding for record_id, grounding in records}
    bins = np.zeros((len(dataset), len(BINS)), dtype=int)
    bounds = np.zeros((len(dataset), len(BOUNDS)), dtype=int)
    crowds = 0
    for row, image in enumerate(dataset.images):
        objects = true_objects(dataset, image.id)
        crowds += len(dataset.annotations.get(image.id, ())) - len(objects)
        ends = object_ends(known.get(image.id), objects, dataset, image.size, matcher, iou=iou)
        bins[row] = [ends.count(name) for name in BINS]
        spoken = [name in BINS[2:] for name in ends]
        reached = [each >= iou for each in oracle.get(image.id, [0.0] * len(objects))]
        bounds[row] = [sum(a and b for a, b in zip(spoken, reached, strict=True)), sum(spoken)]
    return Ledger(bins, bounds, crowds)


def true_objects(dataset: CocoDataset, image_id: int) -> list[dict]:
    """The annotations of an image that are no crowds."""
    return [each for each in dataset.annotations.get(image_id, ()) if not each.get("iscrowd", 0)]


def object_ends(
    grounding: Grounding | None,
    objects: Sequence[dict],
    dataset: CocoDataset,
    size: tuple[int, int],
    matcher: CategoryMatcher,
    *,
    iou: float = IOU,
) -> list[str]:
    """The bin of each object of one image."""
    ends = ["not said"] * len(objects)
    if grounding is None:
        return ends
    present = {each["category_id"]: dataset.categories[each["category_id"]] for each in objects}
    spoken = [matcher.best(phrase, present)[0] for phrase in grounding.phrases]
    for category, name in present.items():
        own = [number for number, each in enumerate(objects) if each["category_id"] == category]
        phrases = [number for number, each in enumerate(spoken) if each == category]
        pairs = _pairs(grounding, phrases, [objects[number] for number in own], size, iou)
        for place, end in pairs.items():
            ends[own[place]] = end
        left = [number for number in own if ends[number] == "not said"]
        unheard = max(mentions(grounding.generation.text, name) - len(phrases), 0)
        for number in left[:unheard]:
            ends[number] = "no match"
    return ends


def mentions(text: str, name: str) -> int:
    """How often a text names a category, alone or in the plural; upper and lower case are the same."""
    return len(re.findall(rf"\b{re.escape(name)}(?:e?s)?\b", text, flags=re.IGNORECASE))


def _pairs(
    grounding: Grounding, phrases: Sequence[int], objects: Sequence[dict], size: tuple[int, int], iou: float
) -> dict[int, str]:
    """Place of each object that a phrase is paired with, and its bin."""
    if not phrases or not objects:
        return {}
    inside = _inside(grounding, phrases, objects, size)
    overlaps = _overlaps(grounding, phrases, objects, size)
    counted = overlaps >= iou
    n = len(objects) + 1  # one that counts outweighs all points, one point all overlaps
    worth = n * n * counted + n * (inside & ~counted) + overlaps
    found = {}
    for phrase, place in zip(*linear_sum_assignment(-worth), strict=True):
        if counted[phrase, place]:
            found[int(place)] = "counted"
        else:
            found[int(place)] = "segmenter missed" if inside[phrase, place] else "attention missed"
    return found


def _inside(
    grounding: Grounding, phrases: Sequence[int], objects: Sequence[dict], size: tuple[int, int]
) -> Bool[np.ndarray, "p g"]:
    """Whether each phrase's point lies on a pixel of each object."""
    masks = np.stack([annotation_mask(each, size) for each in objects])
    points = grounding.points[list(phrases)].numpy().astype(int)
    return masks[:, points[:, 1], points[:, 0]].T


def _overlaps(
    grounding: Grounding, phrases: Sequence[int], objects: Sequence[dict], size: tuple[int, int]
) -> Float[np.ndarray, "p g"]:
    """IoU of each phrase's last mask with each object; 0 for a phrase without a mask."""
    found = np.zeros((len(phrases), len(objects)))
    masked = [row for row, phrase in enumerate(phrases) if grounding.masks[phrase]]
    if masked:
        codes = [_bytes(grounding.masks[phrases[row]][-1]) for row in masked]
        truth = [_bytes(annotation_rle(each, size)) for each in objects]
        found[masked] = np.asarray(rle.iou(codes, truth, [0] * len(truth)), dtype=float)
    return found


def _bytes(code: dict) -> dict:
    counts = code["counts"]
    return {"size": code["size"], "counts": counts.encode() if isinstance(counts, str) else counts}


def ledger_table(ledgers: Mapping[str, Ledger], *, seed: int = 0) -> pd.DataFrame:
    """Shares of all true objects in percent, with intervals over images: a row for each bin, then the two bounds; the
    bins of a system add up to 100.
    """
    rows = []
    for label, ledger in ledgers.items():
        for column in (*BINS, *BOUNDS):
            row = {"method": label, "object": column}
            row |= ledger.share(column, seed=seed).columns("share", ends=("low", "high"))
            rows.append(row | {"objects": ledger.number(column), "of": ledger.n_objects})
    return pd.DataFrame(rows)


def reading(label: str, ledger: Ledger) -> str:
    """One sentence that says where most objects of a system get lost."""
    if ledger.n_objects == 0:
        return f"{label}: the data have no objects."
    shares = {name: 100 * ledger.number(name) / ledger.n_objects for name in (*BINS, *BOUNDS)}
    lost, (point, mask) = max(BINS[:-1], key=shares.get), (shares[name] for name in BOUNDS)
    return (
        f"{label}: of {ledger.n_objects} objects {shares['counted']:.1f} % are counted; most of the others end in "
        f"{lost!r} ({shares[lost]:.1f} %). With true points {point:.1f} % could be counted, "
        f"with true masks {mask:.1f} %."
    )
