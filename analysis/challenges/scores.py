"""What the challenges do to an answer: points, what is named, and what is said of a thing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.challenges.data import ABSENT, ORDINARY, PRESENT, Challenge, Challenges
from analysis.ledger.ledger import mentions
from analysis.results import Result, rows_of
from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import Interval, difference_interval, ratio_interval
from analysis.scoring.phrases import PhraseScores, match_phrases, score_chance, score_points
from core.phrases import phrase_at
from core.pipeline import Grounding

DENIALS = re.compile(r"\b(no|not|none|nothing|cannot|can't|isn't|aren't|doesn't|don't|without)\b", re.IGNORECASE)
"""Words by which an answer admits that a thing is not there."""
Pairs = list[tuple[str, Grounding]]


def description_table(
    challenges: Challenges, records: Mapping[str, Grounding], matcher: CategoryMatcher, *, seed: int = 0
) -> pd.DataFrame:
    """One row for each challenge whose pictures are described: PAcc, a random point's for the same phrases, and
    precision and recall of the categories that the answers name; in percent, with intervals over images. `shifted`
    shows the ordinary scenes, so its difference to them is paired.
    """
    rows, points, named = [], {}, {}
    for kind in [kind for kind in challenges.kinds if kind not in (ABSENT, PRESENT)]:
        truth = challenges.truth_of(kind)
        own = [(item.id, records[item.id]) for item in challenges.of(kind) if item.id in records]
        found = match_phrases(own, truth, matcher)
        points[kind], named[kind] = score_points(found, truth), named_categories(own, truth)
        row: dict[str, Any] = {"challenge": challenges.of(kind)[0].title, "images": len(own)}
        row |= points[kind].interval(seed=seed).columns("PAcc")
        row["chance"] = 100 * float(score_chance(found, truth).means[0])
        right, said, there = named[kind]
        row |= ratio_interval(right, said, seed=seed).columns("precision")
        row |= ratio_interval(right, there, seed=seed).columns("recall")
        rows.append(row | {"phrases": len(points[kind].values)})
    return pd.DataFrame(rows)


def shift_differences(
    challenges: Challenges, records: Mapping[str, Grounding], matcher: CategoryMatcher, *, seed: int = 0
) -> pd.DataFrame:
    """`shifted` minus `ordinary` on the same scenes, in percentage points with paired intervals; empty where the list
    does not have both.
    """
    columns = ["quantity", "difference", "low", "high"]
    if not {ORDINARY, "shifted"} <= set(challenges.kinds):
        return pd.DataFrame(columns=columns)
    pairs = [(challenges.of(ORDINARY)[n], challenges.of("shifted")[n]) for n in range(len(challenges.of(ORDINARY)))]
    pairs = [pair for pair in pairs if all(item.id in records for item in pair)]
    sides: list[tuple[PhraseScores, tuple]] = []
    for side, kind in enumerate((ORDINARY, "shifted")):
        own = [(pair[side].id, records[pair[side].id]) for pair in pairs]
        truth = challenges.truth_of(kind)
        sides.append((score_points(match_phrases(own, truth, matcher), truth), named_categories(own, truth)))
    (before, told_before), (after, told_after) = sides
    found = {
        "PAcc": difference_interval((before.sums[0], after.sums[0]), (before.counts, after.counts), seed=seed),
        "precision": _difference(told_before, told_after, 1, seed),
        "recall": _difference(told_before, told_after, 2, seed),
    }
    rows = [(name, *(100 * value for value in (own.value, own.low, own.high))) for name, own in found.items()]
    return pd.DataFrame(rows, columns=columns)


def named_categories(
    records: Iterable[tuple[str, Grounding]], truth: CocoDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image of the truth the categories that its answer rightly names, those that it names, and those that are
    there; a category counts once an image. An image without a record names nothing.
    """
    known = dict(records)
    counts = []
    for image in truth.images:
        there = set(truth.annotated(image.id).values())
        text = known[str(image.id)].generation.text if str(image.id) in known else ""
        said = {name for name in truth.categories.values() if mentions(text, name)}
        counts.append((len(said & there), len(said), len(there)))
    return tuple(np.array(counts, dtype=float).reshape(-1, 3).T)


def question_table(
    challenges: Challenges,
    records: Mapping[str, Grounding],
    colours: Iterable[str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The questions for the colour of something that is not there, and of something that is.

    Returns:
        A row for each with `denied` (answers that admit an absence), `coloured` (answers that name a colour and admit
        none), in percent with intervals over images; of what is there `right`, the answers with its true colour; and
        `image mass`, the share of attention on the image at the asked word, in percent.
    """
    rows, colours = [], tuple(colours)
    for kind in (ABSENT, PRESENT):
        items = [item for item in challenges.of(kind) if item.id in records]
        if not items:
            continue
        texts = [records[item.id].generation.text for item in items]
        denied = np.array([bool(DENIALS.search(text)) for text in texts], dtype=float)
        coloured = np.array([any(mentions(text, name) for name in colours) for text in texts]) * (1 - denied)
        row: dict[str, Any] = {"question about": challenges.of(kind)[0].title.removeprefix("asked about ")}
        one = np.ones(len(items))
        row |= {"images": len(items)} | ratio_interval(denied, one, seed=seed).columns("denied")
        row |= ratio_interval(coloured, one, seed=seed).columns("coloured")
        right = [_is_right(item, text, challenges.truth) for item, text in zip(items, texts, strict=True)]
        known = np.array([each is not None for each in right], dtype=float)
        hits = np.array([bool(each) for each in right], dtype=float)
        row |= ratio_interval(hits, known, seed=seed).columns("right")
        mass = np.array([_mass(records[item.id], item.asked) for item in items])
        seen = ~np.isnan(mass)
        row |= ratio_interval(np.where(seen, mass, 0), seen.astype(float), seed=seed).columns("image mass")
        rows.append(row)
    return pd.DataFrame(rows)


def question_reading(table: pd.DataFrame) -> str:
    """One sentence on what is said of things that are not there."""
    rows = table.set_index("question about") if len(table) else table
    if "something absent" not in rows.index:
        return "This list asks about nothing that is absent."
    row = rows.loc["something absent"]
    said = "mostly invents a colour" if row["coloured"] > row["denied"] else "mostly admits that it is not there"
    return (
        f"Asked for the colour of something that is not there, the model {said}: {row['denied']:.0f} % of "
        f"{row['images']} answers admit an absence, {row['coloured']:.0f} % name a colour."
    )


def challenge_results(descriptions: pd.DataFrame, questions: pd.DataFrame, figure: str) -> list[Result]:
    """Figure 4 for the report's summary: the picture, and the numbers beside it."""
    found = [Result(item="Figure 4", quantity="grounded answers to four challenges", figure=figure)]
    for frame, label, names in (
        (descriptions, "challenge", ("PAcc", "precision", "recall")),
        (questions, "question about", ("denied", "coloured")),
    ):
        found += rows_of(frame, item="Figure 4", quantities={name: f"{name} (%)" for name in names}, label=label)
    return found


def _is_right(item: Challenge, text: str, truth: CocoDataset | None) -> bool | None:
    """Whether an answer names a true colour of the asked thing; None where the truth knows none."""
    if truth is None:
        return None
    own = [
        each["attributes"]["colour"]
        for each in truth.annotations.get(int(item.id), ())
        if truth.categories[each["category_id"]] == item.asked and "colour" in each.get("attributes", {})
    ]
    return any(mentions(text, colour) for colour in own) if own else None


def _mass(grounding: Grounding, asked: str) -> float:
    """Share of attention on the image at the asked word of the answer; nan where the answer does not say it."""
    found = re.search(rf"\b{re.escape(asked)}", grounding.generation.text, re.IGNORECASE) if asked else None
    phrase = phrase_at(grounding.generation.text, grounding.generation.token_spans, found.span()) if found else None
    return float("nan") if phrase is None else float(grounding.generation.attention[list(phrase.tokens)].sum(1).mean())


def _difference(before: tuple, after: tuple, below: int, seed: int) -> Interval:
    return difference_interval((before[0], after[0]), (before[below], after[below]), seed=seed)
