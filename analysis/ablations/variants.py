"""Table 4: the same answers without normalisation, and with the map as the segmenter's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.gcg.scores import GcgScores, difference
from analysis.paper import paper_table
from analysis.results import Result
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
            row |= _percent(metric, own.interval(metric, seed=seed))
        for metric in ("mIoU", "recall"):
            row |= _percent(f"{metric} minus {NORM_POINT}", difference(scores[NORM_POINT], own, metric, seed=seed))
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
    from analysis.scoring.metrics import Interval

    paper, found = paper_variants().set_index("variant"), []
    for row in table.to_dict("records"):
        for metric in ("mIoU", "recall"):
            known = row["variant"] in paper.index
            found.append(
                Result(
                    item="Table 4",
                    quantity=f"{metric} (%)",
                    method=row["variant"],
                    interval=Interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"]),
                    paper=float(paper.loc[row["variant"], metric]) if known else None,
                    paper_method="DiffLMM" if known else "",
                )
            )
    return found


def _percent(name: str, interval: Any) -> dict[str, float]:
    return {
        name: 100 * interval.value,
        f"{name}_low": 100 * interval.low,
        f"{name}_high": 100 * interval.high,
    }
