"""Phrases matched to categories and points scored on them: the one place behind every PAcc."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float, Shaped

from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import NOTHING, Interval, difference_interval, per_image, point_hits, ratio_interval
from analysis.scoring.random_point import area_shares
from core.errors import GroundingError
from core.pipeline import Grounding

PHRASE_COLUMNS = ["image_id", "phrase", "text", "root", "category_id", "category", "similarity", "x", "y"]


@dataclass(frozen=True)
class Phrases:
    """The phrases of some records, each with the category that it speaks of.

    Attributes:
        frame: one row per phrase (`PHRASE_COLUMNS`), indexed from 0; `category_id` is <NA> where the phrase matched no
            annotated category, x and y are its own prompt point, in pixels of the original image.
        points: float [p, m, 2], m points (x, y) for each phrase.
    """

    frame: pd.DataFrame
    points: Float[np.ndarray, "p m 2"]

    @property
    def matched(self) -> Phrases:
        """The phrases that matched a category, with an integer `category_id`."""
        kept = self.frame["category_id"].notna().to_numpy()
        frame = self.frame[kept]
        return Phrases(frame.assign(category_id=frame["category_id"].astype(int)), self.points[kept])


def own_points(grounding: Grounding) -> Float[np.ndarray, "p 1 2"]:
    """The prompt points that a record holds, one for each phrase."""
    return rearrange(grounding.points.numpy(), "p c -> p 1 c")


def match_phrases(
    records: Iterable[tuple[str, Grounding]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
    *,
    points: Callable[[Grounding], Float[np.ndarray, "p m 2"]] = own_points,
) -> Phrases:
    """Match every phrase of every record to a category annotated in its image; records are read one at a time.

    Args:
        records: (image id, grounding) pairs.
        dataset: the ground truth of the same images.
        matcher: decides.
        points: what is scored of a record, m points for each phrase; m must be the same for all.

    Raises:
        GroundingError: a record of an image that is not in the dataset; records with different numbers of points.
    """
    rows, found = [], []
    for record_id, grounding in records:
        image = dataset.image(record_id)
        present = dataset.annotated(image.id)
        found.append(points(grounding))
        for number, phrase in enumerate(grounding.phrases):
            category_id, score = matcher.best(phrase, present)
            x, y = (float(value) for value in grounding.points[number])
            name = present[category_id] if category_id is not None else ""
            rows.append((image.id, number, phrase.text, phrase.root, category_id, name, score, x, y))
    counts = sorted({each.shape[1] for each in found})
    if len(counts) > 1:
        raise GroundingError(f"the records have {counts} points for each phrase; score those of one model at a time")
    frame = pd.DataFrame(rows, columns=PHRASE_COLUMNS).astype({"category_id": "Int64"})
    return Phrases(frame, np.concatenate(found) if found else np.zeros((0, 1, 2)))


@dataclass(frozen=True)
class PhraseScores:
    """m values in 0..1 for each of p phrases, and their sums over each image: images are what the bootstrap resamples.

    Attributes:
        values: float [p, m].
        sums: float [m, images], in the order of the dataset.
        counts: int [images], phrases of each image.
    """

    values: Float[np.ndarray, "p m"]
    sums: Float[np.ndarray, "m images"]
    counts: Shaped[np.ndarray, " images"]

    @property
    def means(self) -> Float[np.ndarray, " m"]:
        """Mean of each column over all phrases; nan where there are none."""
        p, m = self.values.shape
        return self.values.sum(axis=0) / p if p else np.full(m, np.nan)

    def interval(self, column: int = 0, *, draws: int = 2000, seed: int = 0) -> Interval:
        """Mean of a column with a bootstrap interval over images."""
        return ratio_interval(self.sums[column], self.counts, draws=draws, seed=seed) if len(self.values) else NOTHING


def difference(
    first: PhraseScores, second: PhraseScores, columns: tuple[int, int] = (0, 0), *, seed: int = 0
) -> Interval:
    """Mean of a column of the second minus one of the first, with a paired bootstrap interval over the same images."""
    if not len(first.values) or not len(second.values):
        return NOTHING
    sums = (first.sums[columns[0]], second.sums[columns[1]])
    return difference_interval(sums, (first.counts, second.counts), seed=seed)


def score_points(phrases: Phrases, dataset: CocoDataset) -> PhraseScores:
    """1 where a point lies on a pixel of its phrase's category, else 0, for every point of every matched phrase.

    The means are PAcc, section 4.1 of the paper; see `analysis.scoring.metrics.point_hits`.
    """
    matched = phrases.matched
    m = matched.points.shape[1]
    flat = rearrange(matched.points, "p m c -> (p m) c")
    keys = matched.frame[["image_id", "category_id"]].iloc[np.repeat(np.arange(len(matched.frame)), m)]
    hits = point_hits(keys.reset_index(drop=True).assign(x=flat[:, 0], y=flat[:, 1]), dataset)
    return phrase_scores(matched.frame, hits.reshape(-1, m).astype(float), dataset)


def score_chance(phrases: Phrases, dataset: CocoDataset) -> PhraseScores:
    """For every matched phrase, the exact chance that a uniformly random point hits its category, in one column."""
    frame = phrases.matched.frame
    shares = area_shares(dataset).set_index(["image_id", "category_id"])["share"]
    keys = zip(frame["image_id"], frame["category_id"], strict=True)
    return phrase_scores(frame, np.array([[shares[key]] for key in keys], dtype=float).reshape(-1, 1), dataset)


def phrase_scores(frame: pd.DataFrame, values: Float[np.ndarray, "p m"], dataset: CocoDataset) -> PhraseScores:
    """m values in 0..1 for each phrase of a frame (`Phrases.frame`, or a part of it), ready to be averaged."""
    columns = [per_image(pd.Series(column), frame["image_id"], dataset) for column in values.T]
    return PhraseScores(values, np.stack([sums for sums, _ in columns]), columns[0][1])
