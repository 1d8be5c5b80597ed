"""Rows with intervals, and beside them their differences from one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import PALETTE, plot_intervals

CLEAR, UNCLEAR = PALETTE[1], "#999999"


def plot_compared(
    frame: pd.DataFrame,
    reference: str,
    *,
    pairs: Sequence[tuple[str, str]] = (("PAcc", "difference"),),
    title: str = "",
) -> Figure:
    """A row of Axes for each metric: the metric itself, then its difference from the reference.

    Differences whose interval holds 0 are grey.

    Args:
        frame: its first column names the rows; metrics and differences with `_low` and `_high`, in percent.
        reference: the row that the differences are from; it has none.
        pairs: (metric, difference) columns; metrics without any number are left out.
        title: what made the numbers.
    """
    name = frame.columns[0]
    shown = [pair for pair in pairs if frame[pair[0]].notna().any()] or list(pairs[:1])
    size = (6.4 + 3.6, 1.2 + len(shown) * (0.9 + 0.36 * len(frame)))
    figure, axes = plt.subplots(len(shown), 2, figsize=size, layout="constrained", squeeze=False, width_ratios=[3, 2])
    others = frame[frame[name] != reference]
    for (left, right), (metric, difference) in zip(axes, shown, strict=True):
        ends = {"low": f"{metric}_low", "high": f"{metric}_high"}
        colours = [PALETTE[5] if label == reference else PALETTE[1] for label in frame[name]]
        plot_intervals(frame, label=name, value=metric, colours=colours, ax=left, **ends)
        left.set_title(f"{metric} with 95 % intervals over images", loc="left", fontsize=9)
        _plot_differences(frame, difference, others.index, ax=right)
        right.set_title(f"{metric} minus that of {reference} (paired)", loc="left", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _plot_differences(frame: pd.DataFrame, difference: str, rows: pd.Index, *, ax: Axes) -> None:
    low, high = frame[f"{difference}_low"], frame[f"{difference}_high"]
    for position, row in enumerate(frame.index):
        if row not in rows or np.isnan(frame[difference][row]):
            continue
        colour = UNCLEAR if low[row] <= 0 <= high[row] else CLEAR
        label = str(frame.iloc[position, 0])
        ax.plot(
            [low[row], high[row]], [position, position], "-", color=colour, linewidth=2.2, label=f"{label}: interval"
        )
        ax.plot([frame[difference][row]], [position], "o", color=colour, markersize=7, label=label)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        ax.annotate(f"{frame[difference][row]:+.1f}", (frame[difference][row], position), **place)
    ax.axvline(0, color="#444", linewidth=0.8, label="no difference")
    ax.set(ylim=(len(frame) - 0.5, -0.6), yticks=[], xlabel="percentage points")
    ax.grid(axis="x", color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
