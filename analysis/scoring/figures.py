"""Rows with intervals, and beside them their differences from one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
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
) -> Figure:
    """A row of Axes for each metric: the metric itself, then its difference from the reference.

    Differences whose interval holds 0 are grey.

    Args:
        frame: its first column names the rows; metrics and differences with `_low` and `_high`, in percent.
        reference: the row that the differences are from; it has none. Rows of several models end in it.
        pairs: (metric, difference) columns; metrics without any number are left out.
    """
    frame, name = frame.reset_index(drop=True), frame.columns[0]
    shown = [pair for pair in pairs if frame[pair[0]].notna().any()] or list(pairs[:1])
    size = (6.4 + 3.6, 1.2 + len(shown) * (0.9 + 0.36 * len(frame)))
    figure, axes = plt.subplots(len(shown), 2, figsize=size, layout="constrained", squeeze=False, width_ratios=[3, 2])
    compared = ~frame[name].str.endswith(reference)  # a name may begin with the model's
    for (left, right), (metric, difference) in zip(axes, shown, strict=True):
        ends = {"low": f"{metric}_low", "high": f"{metric}_high"}
        colours = [PALETTE[1] if own else PALETTE[5] for own in compared]
        plot_intervals(frame, label=name, value=metric, colours=colours, ax=left, **ends)
        left.set_title(f"{metric} with 95 % intervals over images", loc="left", fontsize=9)
        _plot_differences(frame[compared], difference, len(frame), ax=right)
        right.set_title(f"{metric} minus that of the orange row (paired)", loc="left", fontsize=9)
    return figure


def _plot_differences(frame: pd.DataFrame, difference: str, rows: int, *, ax: Axes) -> None:
    """The rows' differences, each at the height that its index says, of so many rows in all."""
    for position, row in frame.dropna(subset=[difference]).iterrows():
        value, low, high = (row[f"{difference}{end}"] for end in ("", "_low", "_high"))
        label = str(row.iloc[0])
        look = {"color": UNCLEAR if low <= 0 <= high else CLEAR}
        ax.plot([low, high], [position, position], "-", linewidth=2.2, label=f"{label}: interval", **look)
        ax.plot([value], [position], "o", markersize=7, label=label, **look)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        ax.annotate(f"{value:+.1f}", (value, position), **place)
    ax.axvline(0, color="#444", linewidth=0.8, label="no difference")
    ax.set(ylim=(rows - 0.5, -0.6), yticks=[], xlabel="percentage points")
    ax.grid(axis="x", color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
