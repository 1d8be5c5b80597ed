"""All scores of a system's predictions, image by image, so that each has an interval and any two have a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from analysis.gcg import java
from analysis.gcg.captions import caption_scores, meteor_scores
from analysis.gcg.dataset import GcgImage
from analysis.gcg.masks import empty_masks, iou_matrix
from analysis.gcg.precision import RankedMasks, rank_masks
from analysis.gcg.predictions import Prediction, PredictionFolder
from analysis.gcg.protocols import Overlap, Thresholds, glamm_counts, optimal_counts
from analysis.gcg.similarity import PhraseSimilarity
from analysis.scoring.metrics import NOTHING, Interval, resampled_interval
from core.errors import GroundingError
from core.text_encoders import TextEncoder

CAPTIONS = ("METEOR", "CIDEr")
GLAMM = ("AP50", "mIoU", "recall")
OPTIMAL = ("precision (optimal)", "recall (optimal)", "F1 (optimal)", "mIoU (optimal)")
METRICS = (*CAPTIONS, *GLAMM, *OPTIMAL)
CENTRED = ("AP50",)  # metrics whose resamples are biased, see `resampled_interval`
IMAGES_AT_ONCE = 256
Statistic = Callable[[np.ndarray], np.ndarray]


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
            return NOTHING
        return resampled_interval(statistic, self.n_images, draws=draws, seed=seed, centred=metric in CENTRED)

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
        return NOTHING
    options = {"draws": draws, "seed": seed, "centred": metric in CENTRED}
    return resampled_interval(lambda counts: b(counts) - a(counts), first.n_images, **options)


def score_systems(
    predictions: Mapping[str, PredictionFolder],
    encoder: TextEncoder,
    *,
    thresholds: Thresholds | None = None,
    captions: bool = True,
    timeout: float | None = None,
) -> dict[str, GcgScores]:
    """Score systems' predictions of one dataset under both protocols; files are read one at a time.

    Args:
        predictions: of each system by its label.
        encoder: compares phrases; its name belongs to the numbers.
        thresholds: of a match; 0.5 and 0.5 as in the paper.
        captions: whether METEOR and CIDEr are computed; they need Java and are left out with a message without it.
        timeout: seconds for either Java program; by default 300 and 0.2 for each text.

    Raises:
        GroundingError: a malformed prediction, systems on different datasets, or Java that fails or takes too long.

    Source: section 4.2 and table 2; protocol of the public evaluator of GLaMM (eval/gcg/evaluate.py).
    """
    datasets = [found.dataset for found in predictions.values()]
    if any(dataset is not datasets[0] for dataset in datasets):
        raise GroundingError("the predictions are of different datasets; open them all with the same one")
    similarity, why_not = PhraseSimilarity(encoder), "METEOR and CIDEr were not asked for"
    scored, said = {}, {}
    for label, found in predictions.items():
        scored[label], said[label] = _score(found, similarity, thresholds or Thresholds())
    if captions:
        why_not = java.missing() or ""
    columns = {} if why_not or not scored else _caption_columns(datasets[0].images, said, timeout)
    return {label: replace(own, without_captions=why_not, **columns.get(label, {})) for label, own in scored.items()}


def score_predictions(predictions: PredictionFolder, encoder: TextEncoder, **options: Any) -> GcgScores:
    """`score_systems` of a single one."""
    return score_systems({"": predictions}, encoder, **options)[""]


def _score(
    predictions: PredictionFolder, similarity: PhraseSimilarity, thresholds: Thresholds
) -> tuple[GcgScores, list[str]]:
    """The scores without those of captions, and the captions."""
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
    scores = GcgScores(
        encoder=similarity.encoder.name,
        n_images=len(rows),
        n_missing=len(predictions.missing),
        n_uneven=uneven,
        n_phrases=phrases,
        counts={name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]},
        masks=rank_masks(predictions.dataset, masks),
    )
    return scores, said


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


def _caption_columns(
    images: Sequence[GcgImage], said: Mapping[str, Sequence[str]], timeout: float | None
) -> dict[str, dict[str, np.ndarray]]:
    """Of each system METEOR's statistics, CIDEr and who has a reference; zeros for images that have none."""
    captioned = np.array([bool(image.captions) for image in images])
    places, columns = np.flatnonzero(captioned), {}
    references = [images[place].captions for place in places]
    texts = [[own[place] for place in places] for own in said.values()]
    found = caption_scores(texts, references, timeout=timeout) if len(places) else [None] * len(said)
    for label, scores in zip(said, found, strict=True):
        meteor, cider = np.zeros((len(images), java.STATISTICS)), np.zeros(len(images))
        if scores is not None:
            meteor[places], cider[places] = scores
        columns[label] = {"meteor": meteor, "cider": cider, "captioned": captioned.astype(float)}
    return columns


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
