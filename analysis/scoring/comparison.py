"""Several ways of pointing beside each other: PAcc of each with its interval, and its difference from one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.scoring.metrics import NOTHING, Interval
from analysis.scoring.phrases import PhraseScores, difference
from core.errors import GroundingError

PACC = ("PAcc", "PAcc_low", "PAcc_high")
DIFFERENCE = ("difference", "difference_low", "difference_high")


@dataclass(frozen=True)
class Way:
    """A way of pointing: a column of the scores of some phrases."""

    scores: PhraseScores
    column: int = 0


def compare_ways(ways: Mapping[str, Way], reference: str, *, name: str = "points", seed: int = 0) -> pd.DataFrame:
    """PAcc of each way, and its difference from the reference on the same resampled images.

    Args:
        ways: by their rows' names; all of the same dataset.
        reference: the row from which the differences are taken; its own are empty.
        name: of the column of names.
        seed: of the bootstrap over images.

    Returns:
        In percent and percentage points: `name`, PAcc with `_low` and `_high` (95 % interval), `difference` likewise,
        and `n_phrases`. Numbers are nan where no phrase matched.

    Raises:
        GroundingError: the reference is none of the ways.
    """
    if reference not in ways:
        raise GroundingError(f"there is no row {reference!r} to compare with; the rows are {', '.join(ways)}")
    base, rows = ways[reference], []
    for label, way in ways.items():
        apart = difference(base.scores, way.scores, (base.column, way.column), seed=seed)
        row = {name: label} | way.scores.interval(way.column, seed=seed).columns("PAcc")
        row |= (NOTHING if label == reference else apart).columns("difference")
        rows.append(row | {"n_phrases": len(way.scores.values)})
    return pd.DataFrame(rows, columns=[name, *PACC, *DIFFERENCE, "n_phrases"])


def told_apart(low: float, high: float) -> str:
    """What the interval of a difference says: "higher", "lower" or "not told apart"."""
    return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def describe_differences(frame: pd.DataFrame, reference: str) -> str:
    """One line for each row of `compare_ways` but those whose name ends as the reference's, in its numbers."""
    name = frame.columns[0]
    lines = [f"PAcc against {reference} on the same images (95 % intervals, paired, not corrected for their number):"]
    for row in frame[~frame[name].str.endswith(reference)].to_dict("records"):
        value, low, high = (row[column] for column in DIFFERENCE)
        verdict = "nothing to compare" if pd.isna(value) else told_apart(low, high)
        lines.append(f"  {row[name]}: {verdict}, {Interval(value / 100, low / 100, high / 100).points()}")
    return "\n".join(lines)
