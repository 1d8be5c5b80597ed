"""Table 4: the same answers without normalisation, and with the map as the segmenter's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.gcg.scores import GcgScores, difference
from analysis.paper import paper_table
from analysis.results import Result, rows_of
from core.options import PRESETS, GroundOptions

NORM_POINT = "norm + point"
VARIANTS: dict[str, GroundOptions] = {
    "no norm + point": PRESETS["no_normalization"],
    "norm + mask prompt": PRESETS["mask_prompt"],
    "norm + mask prompt, stretched": GroundOptions.of("mask_prompt", mask_temperature=None),
    NORM_POINT: PRESETS["paper"],
}
"""Table 4's rows, and one of ours: the released code's temperature of the mask prompt fits maps of 576 cells; stretched
from its own lowest to its highest value a map needs none."""
METRICS = ("mIoU", "recall", "recall (optimal)", "mIoU (optimal)")
_PAPER = {"no norm + point": ("no", "point"), "norm + mask prompt": ("yes", "mask"), NORM_POINT: ("yes", "point")}


def variant_table(scores: Mapping[str, GcgScores], *, seed: int = 0) -> pd.DataFrame:
    """Table 4 in percent: a row for each variant with mIoU and mask recall as GLaMM counts them and under the optimal
    assignment, each with its interval, and the paired difference of GLaMM's to the first-named `NORM_POINT`.
    """
    rows = []
    for name, own in scores.items():
        row: dict[str, Any] = {"variant": name}
        for metric in METRICS:
            row |= own.interval(metric, seed=seed).columns(metric)
        for metric in ("mIoU", "recall"):
            row |= difference(scores[NORM_POINT], own, metric, seed=seed).columns(f"{metric} minus {NORM_POINT}")
        rows.append(row)
    return pd.DataFrame(rows)


def paper_variants() -> pd.DataFrame:
    """The paper's Table 4 with the names of ours."""
    paper = paper_table(4).rename(columns={"gcg_val_mIoU": "mIoU", "gcg_val_recall": "recall"})
    names = {kind: name for name, kind in _PAPER.items()}
    kinds = zip(paper["attention_normalization"], paper["sam_prompt"], strict=True)
    return paper.assign(variant=[names[kind] for kind in kinds])


def variant_results(table: pd.DataFrame) -> list[Result]:
    """Table 4 for the report's summary."""
    paper = paper_variants().assign(method="DiffLMM").set_index("variant")
    quantities = {name: f"{name} (%)" for name in ("mIoU", "recall")}
    beside = {name: row for name, row in paper.iterrows()}
    return rows_of(
        table, item="Table 4", quantities=quantities, label="variant", beside=lambda row: beside.get(row["variant"])
    )
