"""All scores of a system's predictions, image by image, so that each has an interval and any two have a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis.gcg import java
from analysis.gcg.captions import caption_scores, meteor_scores
from analysis.gcg.dataset import GcgImage
from analysis.gcg.masks import empty_masks, iou_matrix
from analysis.gcg.precision import RankedMasks, rank_masks
from analysis.gcg.predictions import Prediction, PredictionFolder
from analysis.gcg.protocols import Overlap, Thresholds, glamm_counts, optimal_counts
from analysis.scoring.metrics import Interval, resampled_interval
from core.errors import GroundingError
from core.text_encoders import TextEncoder

CAPTIONS = ("METEOR", "CIDEr")
GLAMM = ("AP50", "mIoU", "recall")
OPTIMAL = ("precision (optimal)", "recall (optimal)", "F1 (optimal)", "mIoU (optimal)")
METRICS = (*CAPTIONS, *GLAMM, *OPTIMAL)
IMAGES_AT_ONCE = 256
Statistic = Callable[[np.ndarray], np.ndarray]


class PhraseSimilarity:
    """Cosine similarity of phrases; each is encoded once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Encode what is new, together."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = np.asarray(self.encoder.encode(new), dtype=float)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._known |= dict(zip(new, vectors / np.where(lengths > 0, lengths, 1), strict=True))

    def matrix(self, first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, "q h"]:
        """Every one of the first with every one of the second; 0 where a text has no vector."""
        self.learn([*first, *second])
        if not first or not second:
            return np.zeros((len(first), len(second)))
        return np.stack([self._known[text] for text in first]) @ np.stack([self._known[text] for text in second]).T


@dataclass(frozen=True)
class GcgScores:
    """A system's scores; arrays are in the order of the dataset's images.

    Attributes:
        encoder: name of the text encoder.
        n_images, n_missing, n_uneven: images; those without a prediction; those whose prediction has more phrases than
            masks, or fewer.
        n_phrases: predicted phrases.
        counts: by name the numbers of every image, [images]: `miou`, `matched`, `true` as GLaMM counts;
            `optimal_matched`, `optimal_predicted`, `optimal_true`, `iou_sum` under optimal assignments.
        masks: for AP50.
        meteor, cider, captioned: METEOR's statistics, CIDEr, and whether an image has a reference; None without Java.
        without_captions: why there are no caption scores; "" where there are.
    """

    encoder: str
    n_images: int
    n_missing: int
    n_uneven: int
    n_phrases: int
    counts: Mapping[str, np.ndarray] = field(repr=False)
    masks: RankedMasks = field(repr=False)
    meteor: np.ndarray | None = field(default=None, repr=False)
    cider: np.ndarray | None = field(default=None, repr=False)
    captioned: np.ndarray | None = field(default=None, repr=False)
    without_captions: str = ""

    def statistic(self, metric: str) -> Statistic | None:
        """One of `METRICS` as a function of how often each image counts, [draws, images]; None where it was not
        computed.

        Raises:
            GroundingError: an unknown metric.
        """
        if metric not in METRICS:
            raise GroundingError(f"no metric is called {metric!r}; choose one of {', '.join(METRICS)}")
        if metric in CAPTIONS and self.meteor is None:
            return None
        if metric == "METEOR":
            return lambda counts: np.where(counts.sum(axis=1) > 0, meteor_scores(counts @ self.meteor), np.nan)
        if metric == "AP50":
            return self.masks.ap50
        above, below = self._ratio(metric)
        return lambda counts: _ratio(counts @ above, counts @ below)

    def _ratio(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """What is added up over images above and below the line."""
        own = self.counts
        matched, predicted, true = (own[f"optimal_{name}"] for name in ("matched", "predicted", "true"))
        return {
            "CIDEr": (self.cider, self.captioned),
            "mIoU": (own["miou"], np.ones(self.n_images)),
            "recall": (own["matched"], own["true"]),
            "precision (optimal)": (matched, predicted),
            "recall (optimal)": (matched, true),
            "F1 (optimal)": (2 * matched, predicted + true),
            "mIoU (optimal)": (own["iou_sum"], true),
        }[metric]

    def interval(self, metric: str, *, draws: int = 2000, seed: int = 0) -> Interval:
        """A metric with its bootstrap interval over images, in 0..1 (CIDEr in 0..10); nan where it was not computed."""
        statistic = self.statistic(metric)
        if statistic is None:
            return Interval(float("nan"), float("nan"), float("nan"))
        return resampled_interval(statistic, self.n_images, draws=draws, seed=seed)

    def describe(self) -> str:
        """What was scored, and what was not and why."""
        told = f"{self.n_phrases} phrases on {self.n_images} images, compared by {self.encoder}"
        odd = {
            f"{self.n_missing} images without a prediction count as answered with nothing": self.n_missing,
            f"{self.n_uneven} images have more phrases than masks, or fewer": self.n_uneven,
            self.without_captions: self.without_captions,
        }
        return "; ".join([told, *(text for text, there in odd.items() if there)]) + "."


def difference(first: GcgScores, second: GcgScores, metric: str, *, draws: int = 2000, seed: int = 0) -> Interval:
    """The second's metric minus the first's, on the same resampled images (paired bootstrap).

    Raises:
        GroundingError: scores of different numbers of images.
    """
    if first.n_images != second.n_images:
        raise GroundingError(f"{first.n_images} and {second.n_images} images cannot be paired; score the same dataset")
    a, b = first.statistic(metric), second.statistic(metric)
    if a is None or b is None:
        return Interval(float("nan"), float("nan"), float("nan"))
    return resampled_interval(lambda counts: b(counts) - a(counts), first.n_images, draws=draws, seed=seed)


def score_predictions(
    predictions: PredictionFolder,
    encoder: TextEncoder,
    *,
    thresholds: Thresholds | None = None,
    captions: bool = True,
    timeout: float | None = None,
) -> GcgScores:
    """Score a system's predictions under both protocols; they are read one at a time.

    Args:
        predictions: of one system.
        encoder: compares phrases; its name belongs to the numbers.
        thresholds: of a match; 0.5 and 0.5 as in the paper.
        captions: whether METEOR and CIDEr are computed; they need Java and are left out with a message without it.
        timeout: seconds for either Java program; by default 300 and 0.2 for each text.

    Raises:
        GroundingError: a malformed prediction, or Java that fails or takes too long.

    Source: section 4.2 and table 2; protocol of the public evaluator of GLaMM (eval/gcg/evaluate.py).
    """
    thresholds = thresholds or Thresholds()
    similarity = PhraseSimilarity(encoder)
    rows: list[dict[str, float]] = []
    masks, said = {}, []
    uneven = phrases = 0
    for part in _chunks(predictions, IMAGES_AT_ONCE):
        similarity.learn(text for image, found in part for text in (*found.phrases, *image.labels))
        for image, found in part:
            rows.append(_counts(_overlap(image, found, similarity), thresholds))
            masks[image.id] = found.masks
            said.append(found.caption)
            uneven += len(found.phrases) != len(found.masks)
            phrases += len(found.phrases)
    why_not = java.missing() if captions else "METEOR and CIDEr were not asked for"
    dataset = predictions.dataset
    return GcgScores(
        encoder=encoder.name,
        n_images=len(dataset),
        n_missing=len(predictions.missing),
        n_uneven=uneven,
        n_phrases=phrases,
        counts={name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]},
        masks=rank_masks(dataset, masks),
        without_captions=why_not or "",
        **({} if why_not else _caption_columns(dataset.images, said, timeout)),
    )


def _chunks(pairs: Iterable[Any], size: int) -> Iterator[list[tuple[GcgImage, Prediction]]]:
    left = iter(pairs)
    while part := list(islice(left, size)):
        yield part


def _overlap(image: GcgImage, found: Prediction, similarity: PhraseSimilarity) -> Overlap:
    iou = iou_matrix(found.masks, image.masks)
    covered = iou_matrix(found.masks, image.masks, crowds=[True] * len(image.masks)) if any(image.crowds) else iou
    return Overlap(
        iou=iou,
        covered=covered,
        similarity=similarity.matrix(found.phrases, image.labels),
        crowds=np.array(image.crowds, dtype=bool),
        empty_predicted=empty_masks(found.masks),
        empty_true=empty_masks(image.masks),
    )


def _counts(overlap: Overlap, thresholds: Thresholds) -> dict[str, float]:
    glamm, optimal = glamm_counts(overlap, thresholds), optimal_counts(overlap, thresholds)
    return {
        "miou": glamm.miou,
        "matched": glamm.matched,
        "true": glamm.true,
        "optimal_matched": optimal.matched,
        "optimal_predicted": optimal.predicted,
        "optimal_true": optimal.true,
        "iou_sum": optimal.iou_sum,
    }


def _caption_columns(images: Sequence[GcgImage], said: Sequence[str], timeout: float | None) -> dict[str, np.ndarray]:
    """METEOR's statistics, CIDEr and who has a reference; zeros for images that have none."""
    captioned = np.array([bool(image.captions) for image in images])
    places = np.flatnonzero(captioned)
    meteor, cider = np.zeros((len(images), java.STATISTICS)), np.zeros(len(images))
    if len(places):
        references = [images[place].captions for place in places]
        meteor[places], cider[places] = caption_scores([said[place] for place in places], references, timeout=timeout)
    return {"meteor": meteor, "cider": cider, "captioned": captioned.astype(float)}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
