"""Predicted phrases and masks against the true ones of an image, in two ways: as GLaMM counts, and optimally."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from core.errors import GroundingError

THRESHOLD = 0.5  # of IoU and of the phrases' similarity, in the paper


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """One image's predictions against its truth; p predicted and g true masks, q predicted and h true phrases.

    Attributes:
        iou: of the masks, as areas: crowds are masks like others.
        covered: share of a predicted mask that lies in a true one.
        similarity: cosine of the phrases.
        crowds: which true masks are of crowds.
        empty_predicted, empty_true: which masks have no pixel.
    """

    iou: Float[np.ndarray, "p g"]
    covered: Float[np.ndarray, "p g"]
    similarity: Float[np.ndarray, "q h"]
    crowds: Bool[np.ndarray, " g"]
    empty_predicted: Bool[np.ndarray, " p"]
    empty_true: Bool[np.ndarray, " g"]


@dataclass(frozen=True)
class Thresholds:
    """The least IoU and the least similarity of a match; above 0, or nothing would be a match, too.

    Raises:
        GroundingError: a value outside of 0..1, or 0.
    """

    iou: float = THRESHOLD
    similarity: float = THRESHOLD

    def __post_init__(self) -> None:
        for name in ("iou", "similarity"):
            if not 0 < getattr(self, name) <= 1:
                raise GroundingError(f"the {name} threshold is {getattr(self, name)}; give a number above 0, up to 1")


@dataclass(frozen=True)
class GlammCounts:
    """As GLaMM's evaluator counts an image: mIoU of greedy pairs, matched phrases, true phrases."""

    miou: float
    matched: int
    true: int


@dataclass(frozen=True)
class OptimalCounts:
    """An image under optimal assignments: matched, predicted and true phrases; the true masks' IoUs added up."""

    matched: int
    predicted: int
    true: int
    iou_sum: float


def glamm_counts(overlap: Overlap, thresholds: Thresholds) -> GlammCounts:
    """One image, bit-compatible with GLaMM's evaluator, its oddities included.

    Crowds are masks like others. Two empty masks have no IoU: they end the pairing for mIoU with 0, and for recall they
    overlap better than any other pair. Matching takes the pair of highest IoU, the first of equals, and ends at the
    first that fails a threshold. Where that pair's mask has no phrase, the evaluator drops the image's matches.

    Source: find_best_matches and compute_miou in eval/gcg/evaluate.py of mbzuai-oryx/groundingLMM.
    """
    both_empty = overlap.empty_predicted[:, None] & overlap.empty_true[None, :]
    iou = np.where(both_empty, np.nan, overlap.iou)
    return GlammCounts(
        _greedy_miou(iou), _matched_until_failure(iou.T, overlap.similarity.T, thresholds), _true(overlap)
    )


def _greedy_miou(iou: Float[np.ndarray, "p g"]) -> float:
    left, paired = iou.copy(), []
    while left.size and not np.isnan(left).any() and left.max() > 0:
        place = np.unravel_index(left.argmax(), left.shape)
        paired.append(left[place])
        left[place[0], :] = 0
        left[:, place[1]] = 0
    return float(np.mean(paired)) if paired else 0.0


def _matched_until_failure(
    iou: Float[np.ndarray, "g p"], similarity: Float[np.ndarray, "h q"], thresholds: Thresholds
) -> int:
    left, matched = iou.copy(), 0
    while left.size:
        row, column = np.unravel_index(left.argmax(), left.shape)
        if left[row, column] < thresholds.iou:
            break
        if row >= similarity.shape[0] or column >= similarity.shape[1]:
            return 0
        if similarity[row, column] < thresholds.similarity:
            break
        matched += 1
        left[row, :] = 0
        left[:, column] = 0
    return matched


def _true(overlap: Overlap) -> int:
    return overlap.similarity.shape[1]


def optimal_counts(overlap: Overlap, thresholds: Thresholds) -> OptimalCounts:
    """One image with the assignment that matches the most phrases, and among those the one of the highest IoUs.

    A phrase without a mask, or a mask without one, matches nothing and counts as predicted, or as true. Crowds are no
    objects to be found; a predicted phrase that matches nothing and means a crowd that its mask lies in is not counted.
    The IoUs are of the assignment that makes their sum the highest, phrases aside; a missed mask adds 0.
    """
    predicted, true = (max(sides) for sides in zip(overlap.iou.shape, overlap.similarity.shape, strict=True))
    similarity = np.full(overlap.iou.shape, -np.inf)
    rows, columns = np.minimum(overlap.iou.shape, overlap.similarity.shape)
    similarity[:rows, :columns] = overlap.similarity[:rows, :columns]
    same = similarity >= thresholds.similarity
    objects = ~overlap.crowds
    iou = overlap.iou * objects
    good = same & (iou >= thresholds.iou)
    best = _assigned(good * (min(good.shape, default=0) + iou))
    matched = [(row, column) for row, column in best if good[row, column]]
    free = np.ones(len(good), dtype=bool)
    free[[row for row, _ in matched]] = False
    in_crowd = (same & (overlap.covered >= thresholds.iou))[:, overlap.crowds].any(axis=1)
    iou_sum = sum(iou[pair] for pair in _assigned(iou))
    return OptimalCounts(
        len(matched), predicted - int((free & in_crowd).sum()), true - int(overlap.crowds.sum()), float(iou_sum)
    )


def _assigned(value: Float[np.ndarray, "p g"]) -> list[tuple[int, int]]:
    """The one-to-one pairs whose values add up to the most."""
    rows, columns = linear_sum_assignment(value, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
