"""Whether a thing is looked at again when it is named again: PAcc of first and of later mentions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from analysis.results import BEYOND, Result
from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import Interval
from analysis.scoring.phrases import Phrases, difference, match_phrases, score_points
from core.pipeline import Grounding

FIRST, LATER, LESS = "first mention", "later mentions", "later minus first"


def mention_table(
    runs: Mapping[str, Iterable[tuple[str, Grounding]]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """PAcc of the phrases that name a category of the image for the first time in the answer, of all later ones, and
    their difference, paired over images; in percent.

    Args:
        runs: the records of each system by its label.
        dataset, matcher: the ground truth, and what matches phrases to its categories.
        seed: of the bootstrap.
    """
    rows = []
    for label, records in runs.items():
        matched = match_phrases(records, dataset, matcher).matched
        again = matched.frame.duplicated(["image_id", "category_id"]).to_numpy()
        scores = {
            name: score_points(Phrases(matched.frame[kept].reset_index(drop=True), matched.points[kept]), dataset)
            for name, kept in ((FIRST, ~again), (LATER, again))
        }
        intervals = {name: own.interval(seed=seed) for name, own in scores.items()}
        intervals[LESS] = difference(scores[FIRST], scores[LATER], seed=seed)
        counts = {FIRST: int((~again).sum()), LATER: int(again.sum()), LESS: len(again)}
        for name, own in intervals.items():
            row = {"method": label, "phrases": name} | own.columns("PAcc", ends=("low", "high"))
            rows.append(row | {"number": counts[name]})
    return pd.DataFrame(rows)


def reading(table: pd.DataFrame) -> str:
    """One sentence for each system on whether it looks again."""
    told = []
    for label, rows in table.groupby("method", sort=False):
        own = rows.set_index("phrases")
        first, later, less = (
            Interval(*(own.loc[name, ["PAcc", "low", "high"]] / 100)) for name in (FIRST, LATER, LESS)
        )
        verdict = "less" if less.high < 0 else "more" if less.low > 0 else "not clearly otherwise"
        told.append(
            f"{label}: points of things that are named for the first time are right in {first.percent()}, of things "
            f"named again in {later.percent()}, which is {verdict}: {less.points()}."
        )
    return "\n".join(told)


def mention_results(table: pd.DataFrame, models: Mapping[str, str]) -> list[Result]:
    """For the report's summary; `models` are the systems' by label."""
    return [
        Result(
            item=BEYOND,
            quantity=f"PAcc, {row['phrases']} (%)",
            method=row["method"],
            model=models.get(row["method"], ""),
            interval=Interval(row["PAcc"], row["low"], row["high"]),
        )
        for row in table.to_dict("records")
        if row["phrases"] != LESS
    ]
