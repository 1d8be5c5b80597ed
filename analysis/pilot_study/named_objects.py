"""Which objects the answers name, where the data knows colours: precision and recall of (colour, category) pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from analysis.pilot_study.table import Predictions
from analysis.scoring.coco import CocoDataset
from analysis.scoring.metrics import ratio_interval


def named_pairs(answer: str, colours: Iterable[str], categories: Iterable[str]) -> set[tuple[str, str]]:
    """(colour, category) pairs that a text names side by side, e.g. ("red", "umbrella"); plurals count."""
    by_length = sorted(categories, key=len, reverse=True)
    pattern = rf"\b({_any_of(sorted(colours))})\s+({_any_of(by_length)})(?:e?s)?\b"
    return {(colour.lower(), category.lower()) for colour, category in re.findall(pattern, answer, flags=re.IGNORECASE)}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in words)


def annotated_pairs(dataset: CocoDataset, image_id: int) -> set[tuple[str, str]]:
    """(colour, category) pairs annotated in an image; only annotations that carry `attributes: {"colour": …}` count."""
    return {
        (annotation["attributes"]["colour"].lower(), dataset.categories[annotation["category_id"]].lower())
        for annotation in dataset.annotations.get(image_id, ())
        if "colour" in annotation.get("attributes", {})
    }


def caption_objects(predictions: Predictions, dataset: CocoDataset, *, seed: int = 0) -> pd.DataFrame:
    """Precision and recall, in percent, of the (colour, category) pairs that the answers name; empty where the data
    knows no colours.

    Pairs are counted once per image; the sums run over all answered images (micro average), intervals over images.
    """
    truth = {image_id: annotated_pairs(dataset, image_id) for image_id in predictions.answers}
    colours = {colour for pairs in truth.values() for colour, _ in pairs}
    if not colours:
        return pd.DataFrame(columns=["quantity", "value", "low", "high", "correct", "of"])
    colours |= _all_colours(dataset)
    said = {
        key: named_pairs(answer, colours, dataset.categories.values()) for key, answer in predictions.answers.items()
    }
    correct = pd.Series({key: len(said[key] & truth[key]) for key in truth})
    rows = []
    for quantity, total in (
        ("precision of named (colour, category)", pd.Series({key: len(said[key]) for key in truth})),
        ("recall of annotated (colour, category)", pd.Series({key: len(truth[key]) for key in truth})),
    ):
        interval = ratio_interval(correct.to_numpy(), total.to_numpy(), seed=seed)
        rows.append(
            (
                quantity,
                100 * interval.value,
                100 * interval.low,
                100 * interval.high,
                int(correct.sum()),
                int(total.sum()),
            )
        )
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high", "correct", "of"])


def _all_colours(dataset: CocoDataset) -> set[str]:
    return {
        annotation["attributes"]["colour"].lower()
        for group in dataset.annotations.values()
        for annotation in group
        if "colour" in annotation.get("attributes", {})
    }


def reading(table: pd.DataFrame) -> str:
    """One sentence on `caption_objects`, in its numbers."""
    if table.empty:
        return "This dataset does not know its objects' colours, so named objects cannot be checked."
    parts = [
        f"{row.quantity} {row.correct} of {row.of}" + (f" ({row.value:.1f} %)" if row.of else "")
        for row in table.itertuples(index=False)
    ]
    return f"In the answers: {'; '.join(parts)}."
