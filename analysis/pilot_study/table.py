"""The pilot study (Table 1 of the paper): descriptions scored as instance segmentation of what they mention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from einops import rearrange

from analysis.scoring.coco import CocoDataset, coco_results
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import AP_AR, Interval, mask_ap_ar
from analysis.scoring.phrases import Phrases, match_phrases, score_chance, score_points
from analysis.scoring.random_point import area_shares, random_points
from core.pipeline import Grounding

RANDOM, ATTENDED = "Random Point", "attend-and-segment"


@dataclass(frozen=True)
class Predictions:
    """What a run of records says about a dataset.

    Attributes:
        found: the phrases with their categories and their prompt points.
        results: COCO result dicts of the matched phrases' masks (three each where the records keep all of SAM's masks).
        answers: image id to answer.
    """

    found: Phrases
    results: list[dict[str, Any]]
    answers: dict[int, str]

    @property
    def phrases(self) -> pd.DataFrame:
        """One row per phrase (`analysis.scoring.phrases.PHRASE_COLUMNS`), <NA> where it matched no category."""
        return self.found.frame

    @cached_property
    def matched(self) -> pd.DataFrame:
        """The phrases that matched a category, with an integer `category_id`."""
        return self.found.matched.frame


def collect_predictions(
    records: Iterable[tuple[str, Grounding]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
) -> Predictions:
    """Match every phrase of every record to a category of its image.

    Args:
        records: (image id, Grounding) pairs.
        dataset: the ground truth of the same images.
        matcher: what matches phrases to categories.

    Raises:
        GroundingError: a record of an image that is not in the dataset.
    """
    answers: dict[int, str] = {}
    masks: list[tuple[Sequence[dict], list[float]]] = []

    def noted() -> Iterator[tuple[str, Grounding]]:
        for record_id, grounding in records:
            answers[dataset.image(record_id).id] = grounding.generation.text
            masks.extend(zip(grounding.masks, grounding.scores.tolist(), strict=True))
            yield record_id, grounding

    found = match_phrases(noted(), dataset, matcher)
    matched = found.matched.frame
    results = [
        result
        for row, image_id, category_id in zip(matched.index, matched["image_id"], matched["category_id"], strict=True)
        for result in coco_results(int(image_id), int(category_id), *masks[row])
    ]
    return Predictions(found, results, answers)


def point_accuracy(predictions: Predictions, dataset: CocoDataset, *, draws: int = 2000, seed: int = 0) -> Interval:
    """PAcc of the matched phrases' prompt points, with a bootstrap interval over images.

    With three masks per phrase the released code counts each phrase's point three times; the share is the same.
    """
    return score_points(predictions.found, dataset).interval(draws=draws, seed=seed)


def random_accuracy(dataset: CocoDataset, *, n_draws: int = 100, seed: int = 0, draws: int = 2000) -> Interval:
    """PAcc of "Random Point", measured over `n_draws` random points per annotated category; interval over images."""
    frame = pd.concat([random_points(dataset, seed=seed, draw=draw) for draw in range(n_draws)], ignore_index=True)
    points = rearrange(frame[["x", "y"]].to_numpy(), "p c -> p 1 c")
    return score_points(Phrases(frame, points), dataset).interval(draws=draws, seed=seed)


def expected_random_accuracy(dataset: CocoDataset) -> float:
    """The exact expectation of `random_accuracy`: the mean share of the image that an annotated category covers."""
    return float(area_shares(dataset)["share"].mean())


def chance_accuracy(predictions: Predictions, dataset: CocoDataset, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Expected PAcc if each matched phrase's point were uniformly random: chance for the phrases the model said."""
    return score_chance(predictions.found, dataset).interval(draws=draws, seed=seed)


def pilot_table(
    predictions: Predictions,
    baseline: Sequence[dict[str, Any]],
    dataset: CocoDataset,
    *,
    n_draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Our rows of Table 1, in percent, the paper's columns first.

    Args:
        predictions: of the model.
        baseline: `random_results` of the random points on the same dataset.
        dataset: the ground truth.
        n_draws: random points per category behind the baseline's PAcc.
        seed: of the random points and the bootstrap.

    Returns:
        Rows "Random Point", "Random Point, one per matched phrase (expected)" (PAcc only) and "attend-and-segment";
        columns `method`, `PAcc`, `PAcc_low`, `PAcc_high` (95 % interval over images), AP and AR by size, and the
        counts behind them.
    """
    chance = _row(f"{RANDOM}, one per matched phrase (expected)", chance_accuracy(predictions, dataset, seed=seed), {})
    own = model_row(ATTENDED, predictions, dataset, seed=seed)
    return as_table([baseline_row(baseline, dataset, n_draws=n_draws, seed=seed), chance, own], dataset)


def baseline_row(
    baseline: Sequence[dict[str, Any]], dataset: CocoDataset, *, n_draws: int = 100, seed: int = 0
) -> dict[str, Any]:
    """The row "Random Point" of `pilot_table`."""
    return _row(RANDOM, random_accuracy(dataset, n_draws=n_draws, seed=seed), mask_ap_ar(baseline, dataset))


def model_row(method: str, predictions: Predictions, dataset: CocoDataset, *, seed: int = 0) -> dict[str, Any]:
    """A model's row of `pilot_table`, with the counts behind it."""
    said, matched = len(predictions.phrases), len(predictions.matched)
    scores = _row(method, point_accuracy(predictions, dataset, seed=seed), mask_ap_ar(predictions.results, dataset))
    counts = {"n_answers": len(predictions.answers), "n_phrases": said}
    return {**scores, **counts, "matched_share": 100 * matched / said if said else float("nan")}


def as_table(rows: Sequence[dict[str, Any]], dataset: CocoDataset) -> pd.DataFrame:
    """Rows as a frame with `pilot_table`'s columns, then others that the rows have."""
    columns = ["method", "PAcc", "PAcc_low", "PAcc_high", *AP_AR, "n_images", "n_answers", "n_phrases", "matched_share"]
    frame = pd.DataFrame(
        rows, columns=[*columns, *dict.fromkeys(name for row in rows for name in row if name not in columns)]
    )
    frame["n_images"] = len(dataset)
    return frame.astype({"n_answers": "Int64", "n_phrases": "Int64"})


def _row(method: str, accuracy: Interval, masks: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method}
    row |= {"PAcc": 100 * accuracy.value, "PAcc_low": 100 * accuracy.low, "PAcc_high": 100 * accuracy.high}
    return row | {name: 100 * share for name, share in masks.items()}


def reading(table: pd.DataFrame) -> str:
    """What the pilot table shows, in its own numbers: a sentence or two for each model."""
    rows = table.set_index("method")
    models = [method for method in rows.index if not method.startswith(RANDOM)]
    told = {method: _reading(rows.loc[method], rows.loc[RANDOM]) for method in models}
    return "\n".join(said if method == ATTENDED else f"{method}: {said}" for method, said in told.items())


def _reading(ours: pd.Series, blind: pd.Series) -> str:
    if pd.isna(ours["PAcc"]):
        return (
            f"None of the {int(ours['n_phrases'])} phrases matched an annotated category, so there is nothing to score."
        )
    measured = (
        f"The point prompts fall on their category in {ours['PAcc']:.1f} % of the matched phrases "
        f"(95 % interval over {int(ours['n_images'])} images: {ours['PAcc_low']:.1f} to {ours['PAcc_high']:.1f}), "
        f"a random point in {blind['PAcc']:.1f} %"
    )
    ratio = f": {ours['PAcc'] / blind['PAcc']:.1f} times as often" if blind["PAcc"] > 0 else ""
    masks = f"Mask AP is {ours['AP']:.1f} against {blind['AP']:.1f}, mask AR {ours['AR']:.1f} against {blind['AR']:.1f}"
    return f"{measured}{ratio}. {masks}."
