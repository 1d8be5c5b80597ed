"""Table 2 and what lies behind it: rows with intervals, differences, and what they say."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.gcg.scores import CAPTIONS, GLAMM, METRICS, OPTIMAL, GcgScores, difference
from analysis.paper import paper_methods, paper_table
from analysis.scoring.metrics import Interval
from core.errors import GroundingError

PAPER_ENCODER = "bert-base-uncased"
SHORT = {name: name.removesuffix(" (optimal)") for name in OPTIMAL}


def gcg_table(scores: Mapping[str, GcgScores], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Table 2's rows, in percent (CIDEr times 100), under GLaMM's protocol.

    Args:
        scores: of each system by its label.
        draws, seed: of the bootstrap over images.

    Returns:
        `method`, then METEOR, CIDEr, AP50, mIoU and recall, each with `_low` and `_high` (95 % interval), then
        `text_encoder`, `n_phrases` and `n_missing`.
    """
    rows = [
        {"method": label} | _columns(own, {metric: metric for metric in (*CAPTIONS, *GLAMM)}, draws, seed) | _about(own)
        for label, own in scores.items()
    ]
    return pd.DataFrame(rows)


def optimal_table(scores: Mapping[str, GcgScores], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Both protocols side by side, in percent: GLaMM's recall, then recall, precision, F1 and mIoU under optimal
    assignments; further columns as in `gcg_table`.
    """
    order = ("recall (optimal)", "precision (optimal)", "F1 (optimal)", "mIoU (optimal)")
    shown = {"recall": "recall, GLaMM"} | {metric: SHORT[metric] for metric in order}
    rows = [{"method": label} | _columns(own, shown, draws, seed) | _about(own) for label, own in scores.items()]
    return pd.DataFrame(rows)


def gcg_differences(scores: Mapping[str, GcgScores], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every metric of each system minus that of the first, in percentage points, with paired bootstrap intervals.

    Returns:
        `method`, `metric`, `difference`, `low`, `high`; none for metrics that were not computed.

    Raises:
        GroundingError: the systems' phrases were compared by different encoders.
    """
    encoders = sorted({own.encoder for own in scores.values()})
    if len(encoders) > 1:
        raise GroundingError(f"recall by {' and by '.join(encoders)} cannot be compared; score all with one encoder")
    first, *others = scores
    rows = []
    for label in others:
        for metric in METRICS:
            found = difference(scores[first], scores[label], metric, draws=draws, seed=seed)
            if not pd.isna(found.value):
                rows.append((label, metric, *(100 * value for value in (found.value, found.low, found.high))))
    return pd.DataFrame(rows, columns=["method", "metric", "difference", "low", "high"])


def name_models(frame: pd.DataFrame, models: Mapping[str, str]) -> pd.DataFrame:
    """The frame with a column `model` after `method`, by the methods' labels; of one row the frame as it is, since its
    model stands in the table's provenance.
    """
    if len(models) == 1:
        return frame
    named = frame.assign(model=frame["method"].map(models))
    return named[["method", "model", *(name for name in frame.columns if name != "method")]]


def paper_rows(split: str) -> pd.DataFrame:
    """The paper's Table 2 for one split, with `gcg_table`'s columns.

    Raises:
        GroundingError: the paper has no such split.
    """
    paper = paper_table(2).assign(method=paper_methods(2), text_encoder=PAPER_ENCODER)
    names = {name: name.removeprefix(f"{split}_") for name in paper.columns if name.startswith(f"{split}_")}
    if not names:
        raise GroundingError(f"the paper's table 2 has no split {split!r}; choose val or test")
    about = paper[["source", "data", "method", "grounding_supervision", "text_encoder"]]
    return pd.concat(
        [about.assign(data=about["data"] + f" ({split})"), paper[list(names)].rename(columns=names)], axis=1
    )


def reading(scores: Mapping[str, GcgScores], *, draws: int = 2000, seed: int = 0) -> str:
    """A sentence or two on each system, in its numbers."""
    return "\n".join(f"{label}: {_reading(own, draws, seed)}" for label, own in scores.items())


def compare(differences: pd.DataFrame, first: str) -> str:
    """In which metrics the systems differ from the first by more than the images' chance allows."""
    lines = [f"Against {first} on the same images (95 % intervals, paired bootstrap, not corrected for their number):"]
    for row in differences.to_dict("records"):
        verdict = "higher" if row["low"] > 0 else "lower" if row["high"] < 0 else "not told apart"
        interval = Interval(*(row[name] / 100 for name in ("difference", "low", "high")))
        lines.append(f"  {row['method']}, {row['metric']}: {verdict}, {interval.points()}")
    return "\n".join(lines)


def _columns(own: GcgScores, shown: Mapping[str, str], draws: int, seed: int) -> dict[str, float]:
    """Metrics under the names that they are shown by."""
    found = {name: own.interval(metric, draws=draws, seed=seed) for metric, name in shown.items()}
    return {column: value for name, each in found.items() for column, value in each.columns(name).items()}


def _about(own: GcgScores) -> dict[str, str | int]:
    return {"text_encoder": own.encoder, "n_phrases": own.n_phrases, "n_missing": own.n_missing}


def _reading(own: GcgScores, draws: int, seed: int) -> str:
    recall, optimal = (own.interval(name, draws=draws, seed=seed) for name in ("recall", "recall (optimal)"))
    precision, miou = (own.interval(name, draws=draws, seed=seed) for name in ("precision (optimal)", "mIoU"))
    return (
        f"mask recall {recall.percent()} as GLaMM counts, {optimal.percent()} under the optimal assignment, where "
        f"{precision.percent()} of the phrases are right; mIoU {miou.percent()}. {own.describe()}"
    )
