"""What the tables of the encoder variants show in words, with what the spread over seeds does and does not support."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.encoders.losses import KINDS, StageLosses
from analysis.encoders.rows import find_table, paper_losses
from analysis.encoders.tables import loss_table, paired_differences, rank_agreement


def reading(losses: StageLosses, number: int) -> str:
    """A few lines that say what Table 5 or 6 shows, in its own numbers."""
    table = loss_table(losses, number)
    missing = table.loc[table["seeds"] == "not run", "label"]
    lines = [f"Not run: {'; '.join(missing)}."] if len(missing) else []
    ran = table[table["seeds"] != "not run"]
    if ran.empty:
        return "\n".join([*lines, "There is nothing to read from this table yet."])
    differences, study = paired_differences(losses, number), find_table(number)
    for kind, said in KINDS.items():
        lines.append(_extremes(ran, kind, said))
        lines.append(_against(differences, kind, study.reference_label))
    lines += [_lowest(ran, paper_losses(number), varied, *held) for varied, held in study.panels.items()]
    return "\n".join([*lines, _agreement(rank_agreement(losses, number))])


def _extremes(ran: pd.DataFrame, kind: str, said: str) -> str:
    low, high = ran.loc[ran[kind].idxmin()], ran.loc[ran[kind].idxmax()]
    spread = (ran[f"{kind}_max"] - ran[f"{kind}_min"]).max()
    apart = f"; seeds of one variant lie up to {spread:.3f} apart" if ran[f"{kind}_sd"].notna().any() else ""
    return (
        f"{said[0].upper()}{said[1:]}: lowest for {low['label']} ({low[kind]:.3f}), highest for {high['label']} "
        f"({high[kind]:.3f}){apart}."
    )


def _against(differences: pd.DataFrame, kind: str, reference: str) -> str:
    """Which variants differ from the reference by more than chance allows, and which do not."""
    measured = differences[differences["pairs"] > 0]
    if measured.empty:
        return f"  {reference} and the others have no seed in common, so no difference can be told."
    known = measured[measured["pairs"] > 1]
    if known.empty:
        return f"  With a single seed, nothing can be said of differences from {reference}."
    groups = {
        "lower": known[known[f"{kind}_high"] < 0],
        "higher": known[known[f"{kind}_low"] > 0],
        "not told apart": known[(known[f"{kind}_low"] <= 0) & (known[f"{kind}_high"] >= 0)],
    }
    pairs = " or ".join(str(number) for number in sorted(set(known["pairs"])))
    lines = [
        f"  Paired with {reference} over {pairs} seeds (95 % intervals of t; {len(known)} comparisons, not corrected):"
    ]
    for name, rows in groups.items():
        if len(rows):
            lines.append(f"    {name}: {', '.join(_difference(row, kind) for row in rows.to_dict('records'))}")
    if len(known) < len(differences):
        single = differences.loc[differences["pairs"] < 2, "label"]
        lines.append(f"    without two pairs, so without an interval: {', '.join(single)}")
    return "\n".join(lines)


def _difference(row: dict[str, Any], kind: str) -> str:
    return f"{row['label']} ({row[kind]:+.3f} [{row[f'{kind}_low']:+.3f}, {row[f'{kind}_high']:+.3f}])"


def _lowest(ran: pd.DataFrame, paper: pd.DataFrame, varied: str, fixed: str, at: int) -> str:
    """Where along one panel our losses and the paper's are lowest."""
    ours = ran[ran[fixed] == at]
    paper = paper[(paper[fixed] == at) & paper[varied].isin(ours[varied])]
    name, held = varied.replace("_", " "), fixed.replace("_", " ")
    if ours.empty:
        return f"No run varies the {name}."
    values = ", ".join(map(str, sorted(ours[varied])))
    found = [f"{ours.loc[ours[kind].idxmin(), varied]} by {said}" for kind, said in KINDS.items()]
    theirs = paper.loc[paper["training_loss"].idxmin(), varied]
    return (
        f"Among {name}s {values} at {held} {at}, the mean is lowest at {' and '.join(found)}; in the paper at {theirs}."
    )


def _agreement(agreement: pd.DataFrame) -> str:
    number = int(agreement["rows"].iloc[0])
    if agreement["spearman"].isna().all():
        return f"Rank agreement with the paper needs three variants that differ; {number} ran."
    told = [
        f"{row['spearman']:+.2f} for the {row['loss']} ({row['chance']:.1f} % of all orders agree as well or better)"
        for row in agreement.dropna(subset="spearman").to_dict("records")
    ]
    return (
        f"Rank agreement with the paper over {number} rows (Spearman): {'; '.join(told)}. These are orders of {number} "
        "rows of other models on other data, no reproduction of the paper's numbers; rows that the seeds do not tell "
        "apart could stand in either order."
    )
