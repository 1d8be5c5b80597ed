"""Point accuracy, mask AP/AR and bootstrap intervals. Shares lie in 0..1; tables turn them into percent."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer, Shaped
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.scoring.coco import CocoDataset
from core.errors import GroundingError

AP_AR = {"AP_S": 3, "AP_M": 4, "AP_L": 5, "AP": 0, "AR_S": 9, "AR_M": 10, "AR_L": 11, "AR": 8}
"""The paper's columns, in its order, and their places among COCOeval's twelve numbers (AR: at most 100 detections)."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval; nan where there was nothing to estimate from."""

    value: float
    low: float
    high: float

    @property
    def in_percent(self) -> Interval:
        """The same of a share in percent."""
        return Interval(100 * self.value, 100 * self.low, 100 * self.high)

    def columns(self, name: str, *, ends: tuple[str, str] | None = None) -> dict[str, float]:
        """Of a share, in percent, what a table's row holds: `name`, and its ends under `name` with `_low` and `_high`
        behind it, or under two other names.
        """
        low, high = ends or (f"{name}_low", f"{name}_high")
        return {name: 100 * self.value, low: 100 * self.low, high: 100 * self.high}

    def percent(self) -> str:
        """For example "34.0 [31.2, 36.9] %"."""
        if np.isnan(self.value):
            return "undefined (no samples)"
        return f"{self._numbers()} %"

    def points(self) -> str:
        """A difference of shares, for example "-2.4 [-6.8, 1.9] percentage points"."""
        return "undefined (no samples)" if np.isnan(self.value) else f"{self._numbers()} percentage points"

    def _numbers(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


NOTHING = Interval(float("nan"), float("nan"), float("nan"))


def point_hits(points: pd.DataFrame, dataset: CocoDataset, *, crowds: bool = True) -> Bool[np.ndarray, " p"]:
    """Whether each point lies on a pixel of its category in its image.

    Args:
        points: columns `image_id`, `category_id`, `x`, `y`; continuous pixels of the original image, so the point (x,
            y) lies in column floor(x), row floor(y).
        dataset: the ground truth.
        crowds: a category's crowd regions count as its pixels: a point on a crowd of people is on a person.

    Raises:
        GroundingError: a point lies outside its image.

    Source: PAcc, section 4.1: "the ratio of prompt points that correctly fall into the masks of the corresponding
        category". The paper does not speak of crowd regions; we count them, and `crowds=False` does not.
    """
    hits = np.zeros(len(points), dtype=bool)
    columns, rows = np.floor(points["x"].to_numpy(float)), np.floor(points["y"].to_numpy(float))
    position = pd.Series(np.arange(len(points)))
    keys = [points["image_id"].to_numpy(int), points["category_id"].to_numpy(int)]
    for (image_id, category_id), group in position.groupby(keys):
        union = dataset.union_mask(int(image_id), int(category_id), crowds=crowds)
        where = group.to_numpy()
        i, j = rows[where], columns[where]
        outside = (i < 0) | (j < 0) | (i >= union.shape[0]) | (j >= union.shape[1])
        if outside.any():
            bad = points.iloc[where[outside.argmax()]]
            raise GroundingError(
                f"point (x, y) = ({bad['x']}, {bad['y']}) lies outside image {image_id} of (H, W) {union.shape}; "
                "points must be in pixels of the original image"
            )
        hits[where] = union[i.astype(int), j.astype(int)]
    return hits


def mask_ap_ar(results: Sequence[dict[str, Any]], dataset: CocoDataset) -> dict[str, float]:
    """COCO `segm` AP and AR, over all sizes and for small, medium and large objects (standard areas, 100 detections).

    Args:
        results: COCO result dicts: `image_id`, `category_id`, `segmentation` (compressed RLE), `score`.
        dataset: the ground truth; its images without predictions count as missed, its crowd regions are ignored.

    Returns:
        `AP_AR`'s names to shares; nan where the ground truth has no object of that size.
    """
    known = {image.id for image in dataset.images}
    results = [result for result in results if result["image_id"] in known]
    evaluation = coco_evaluation(dataset.to_coco(), results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[i]) if evaluation.stats[i] >= 0 else float("nan") for name, i in AP_AR.items()}


def coco_evaluation(truth: dict[str, Any], results: Sequence[dict[str, Any]], **settings: Any) -> COCOeval:
    """COCO's own `segm` evaluator, its matching done: `evalImgs` hold it, and `accumulate` goes on from there.

    Args:
        truth: a COCO dict whose segmentations are compressed run-length codes.
        results: as in `mask_ap_ar`, of the truth's images alone.
        settings: of the evaluator's `params`, such as `iouThrs`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = _indexed(truth)
        evaluation = COCOeval(indexed, _detections(results, indexed), iouType="segm")
        for name, value in settings.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
    return evaluation


def _indexed(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _detections(results: Sequence[dict[str, Any]], truth: COCO) -> COCO:
    """As `COCO.loadRes`, which fails on an empty list."""
    entries = [
        copy.copy(result)
        | {
            "id": number,
            "area": float(rle.area(result["segmentation"])),
            "bbox": [float(value) for value in rle.toBbox(result["segmentation"])],
            "iscrowd": 0,
        }
        for number, result in enumerate(results, start=1)
    ]
    return _indexed(truth.dataset | {"annotations": entries})


def ratio_interval(
    numerators: Shaped[np.ndarray, " images"],
    denominators: Shaped[np.ndarray, " images"],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Sum of numerators over sum of denominators, with a percentile bootstrap over images.

    Images, not points, are resampled: the points of one image share its answer and are not independent.
    """
    return _bootstrap((numerators, denominators), _ratio, draws, level, seed)


def difference_interval(
    numerators: tuple[Shaped[np.ndarray, " images"], Shaped[np.ndarray, " images"]],
    denominators: tuple[Shaped[np.ndarray, " images"], Shaped[np.ndarray, " images"]],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Second ratio minus first, both on the same resampled images (paired bootstrap)."""
    return _bootstrap((*numerators, *denominators), lambda a, b, c, d: _ratio(b, d) - _ratio(a, c), draws, level, seed)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _bootstrap(columns: Sequence[np.ndarray], statistic: Any, draws: int, level: float, seed: int) -> Interval:
    table = np.stack([np.asarray(column, dtype=float) for column in columns])

    def resampled(counts: np.ndarray) -> np.ndarray:
        return statistic(*(table @ counts.T))

    return resampled_interval(resampled, table.shape[1], draws=draws, level=level, seed=seed)


def resampled_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    n_images: int,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    centred: bool = False,
) -> Interval:
    """Any number about a set of images, with a percentile bootstrap over them.

    Args:
        statistic: from how often each image counts, [draws, images], to the number for each draw. A paired difference
            is the difference of two statistics.
        n_images: how many images there are.
        centred: move the interval so that the resamples' mean lies at the number itself. For numbers whose resamples
            lie above them as a rule, as AP's do: an image drawn twice makes the ranking more uneven, and the best
            precision at each recall better.
    """
    value = float(statistic(np.ones((1, n_images), dtype=int))[0])
    if np.isnan(value):
        return Interval(value, value, value)
    return percentile_interval(value, statistic(resamples(n_images, draws, seed)), level=level, centred=centred)


def percentile_interval(
    value: float, resampled: Float[np.ndarray, " draws"], *, level: float = 0.95, centred: bool = False
) -> Interval:
    """A number with the interval between two quantiles of its resamples; `centred` as in `resampled_interval`."""
    if np.isnan(value):
        return Interval(value, value, value)
    if centred:
        resampled = resampled - np.nanmean(resampled) + value
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=2)
def resamples(n_images: int, draws: int, seed: int) -> Integer[np.ndarray, "draws images"]:
    """How often each image is drawn; kept, since many numbers of the same images are asked for."""
    counts = np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), size=draws)
    counts.setflags(write=False)
    return counts


def per_image(values: pd.Series, image_ids: pd.Series, dataset: CocoDataset) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of `values` for every image of the dataset, in its order; zeros for images without any."""
    order = [image.id for image in dataset.images]
    grouped = values.astype(float).groupby(image_ids.to_numpy(int))
    return grouped.sum().reindex(order, fill_value=0.0).to_numpy(), grouped.count().reindex(
        order, fill_value=0
    ).to_numpy()
