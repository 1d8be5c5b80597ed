"""What is known of every single head: its statistics, how often it points right, and how the two go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from analysis.heads.points import measured_head_points
from analysis.heads.statistics import AGREEMENT, ENTROPY, MASS, measured
from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import percentile_interval, resamples
from analysis.scoring.phrases import PhraseScores, match_phrases, own_points, phrase_scores, score_points
from core.errors import GroundingError
from core.pipeline import Grounding

NAMES = {MASS: "image mass", ENTROPY: "spatial entropy", AGREEMENT: "agreement with the other heads"}
DRAWS = 1000


@dataclass(frozen=True)
class HeadScores:
    """What is known of every head, phrase by phrase; heads in the order of layers, then heads.

    Attributes:
        shape: (layers, heads of each).
        frame: all phrases (`analysis.scoring.phrases.PHRASE_COLUMNS`), matched or not.
        statistics: by name float [p, m] of all phrases; without annotations.
        hits: of the matched phrases, for each head and last for the mean map of all: 1 where the point is right.
        matched: which phrases of the frame those are.
        dataset: the ground truth.
    """

    shape: tuple[int, int]
    frame: pd.DataFrame = field(repr=False)
    statistics: Mapping[str, Float[np.ndarray, "p m"]] = field(repr=False)
    hits: PhraseScores = field(repr=False)
    matched: Bool[np.ndarray, " p"] = field(repr=False)
    dataset: CocoDataset = field(repr=False)

    @property
    def places(self) -> Int[np.ndarray, " p"]:
        """The place of each phrase's image in the dataset."""
        places = {image.id: place for place, image in enumerate(self.dataset.images)}
        return self.frame["image_id"].map(places).to_numpy(int)

    @property
    def n_heads(self) -> int:
        """Of all layers together."""
        return self.shape[0] * self.shape[1]

    def name(self, head: int) -> str:
        """For example "layer 2 head 0"."""
        return f"layer {head // self.shape[1]} head {head % self.shape[1]}"


def head_scores(records: Iterable[tuple[str, Grounding]], dataset: CocoDataset, matcher: CategoryMatcher) -> HeadScores:
    """Read the points and statistics of every head, and score the points.

    Args:
        records: (image id, grounding) pairs of `analysis.captured.capture_run`.
        dataset, matcher: the ground truth, and what matches phrases to its categories.

    Raises:
        GroundingError: there are no records, they hold nothing of single heads, or are of models with different numbers
            of heads.
    """
    shapes: set[tuple[int, int]] = set()
    kept: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}

    def points(grounding: Grounding) -> np.ndarray:
        single = measured_head_points(grounding).numpy()
        shapes.add(single.shape[1:3])
        for name, values in kept.items():
            values.append(rearrange(measured(grounding, name).numpy(), "p l n -> p (l n)").astype(float))
        return np.concatenate([rearrange(single, "p l n c -> p (l n) c"), own_points(grounding)], axis=1)

    found = match_phrases(records, dataset, matcher, points=points)
    if len(shapes) != 1:
        raise GroundingError(
            f"the records have (layers, heads) {sorted(shapes)}, and one shape is needed; "
            "answer at least one image, with one model"
        )
    statistics = {name: np.concatenate(values) for name, values in kept.items()}
    matched = found.frame["category_id"].notna().to_numpy()
    return HeadScores(next(iter(shapes)), found.frame, statistics, score_points(found, dataset), matched, dataset)


def head_table(scores: HeadScores, *, seed: int = 0) -> pd.DataFrame:
    """One row for each head: `layer`, `head`, PAcc with its interval (percent), and the means of its statistics over
    all phrases: `image mass` (percent of its attention), `spatial entropy` (nats) and `agreement` (correlation).
    """
    rows = []
    for head in range(scores.n_heads):
        accuracy = scores.hits.interval(head, seed=seed)
        numbers = [100 * value for value in (accuracy.value, accuracy.low, accuracy.high)]
        rows.append((*divmod(head, scores.shape[1]), *numbers))
    table = pd.DataFrame(rows, columns=["layer", "head", "PAcc", "PAcc_low", "PAcc_high"])
    means = {name: head_means(values) for name, values in scores.statistics.items()}
    return table.assign(**{NAMES[name]: means[name] * (100 if name == MASS else 1) for name in NAMES})


def rank_correlations(scores: HeadScores, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Spearman's correlation over the heads between each statistic and PAcc, with bootstrap intervals over images.

    Returns:
        `statistic`, `correlation`, `low`, `high`, `n_heads`; nan where no phrase matched, or all heads are alike.
    """
    counts = resamples(len(scores.dataset), draws, seed)
    once = np.ones((1, len(scores.dataset)), dtype=int)
    rows = []
    for name, label in NAMES.items():
        found = phrase_scores(scores.frame, scores.statistics[name], scores.dataset)
        value, resampled = (_correlation(found, scores, each) for each in (once, counts))
        interval = percentile_interval(float(value[0]), resampled)
        rows.append((label, interval.value, interval.low, interval.high, scores.n_heads))
    return pd.DataFrame(rows, columns=["statistic", "correlation", "low", "high", "n_heads"])


def head_means(values: Float[np.ndarray, "p m"]) -> Float[np.ndarray, " m"]:
    """Each head's mean over some phrases, nan where there are none."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)


def _correlation(
    found: PhraseScores, scores: HeadScores, counts: Int[np.ndarray, "draws images"]
) -> Float[np.ndarray, " draws"]:
    """Spearman's correlation over heads for sets of images, given how often each image is in them."""
    means = []
    for each in (found, PhraseScores(scores.hits.values[:, :-1], scores.hits.sums[:-1], scores.hits.counts)):
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((counts @ each.sums.T) / (counts @ each.counts)[:, None])
    first, second = (rankdata(mean, axis=1) for mean in means)
    first, second = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    there = np.isfinite(means[0]).all(axis=1) & np.isfinite(means[1]).all(axis=1) & (size > 0)
    return np.divide((first * second).sum(axis=1), size, out=np.full(len(size), np.nan), where=there)
