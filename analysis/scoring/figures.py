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


def plot_beside_paper(
    ours: pd.DataFrame, paper: pd.DataFrame, names: Sequence[str], *, label: str, width: float
) -> Figure:
    """Metrics with 95 % intervals above, the paper's in grey below on Axes of their own: other models, other data.

    Args:
        ours: columns `label` and the metrics with `_low` and `_high`, in percent.
        paper: the same columns without intervals, and `source`.
        names: the metrics, from left to right.
        label: column of the rows' names.
        width: of the figure, in inches.
    """
    heights = [len(ours) + 0.6, len(paper)]
    size = (width, 1.8 + 0.42 * sum(heights))
    figure, axes = plt.subplots(2, len(names), figsize=size, height_ratios=heights, layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        above, below = axes[:, column]
        plot_intervals(ours, label=label, value=name, low=f"{name}_low", high=f"{name}_high", ax=above)
        plot_intervals(paper, label=label, value=name, colours="#AAAAAA", ax=below)
        for ax in (above, below):
            ax.set_xlim(0, max(10.0, 1.1 * np.nanmax([*ours[f"{name}_high"], *ours[name], *paper[name]])))
            if column:
                ax.set_yticklabels([])
        above.set_title(f"{name}, measured here", loc="left", fontsize=9)
        below.set_title(f"{name}, published: {paper['source'].iloc[0]}", loc="left", fontsize=9, color="#666")
    return figure


def plot_grouped_dots(
    frame: pd.DataFrame, names: Sequence[str], *, label: str, ticks: Sequence[str], ax: Axes
) -> list[np.ndarray]:
    """For each metric a group of dots with their intervals, one for each row, in percent.

    Args:
        frame: columns `label` and the metrics with `_low` and `_high`.
        names, ticks: the metrics and what stands beneath them.
        label: column of the rows' names.
        ax: where.

    Returns:
        Of each row the places of its dots.
    """
    step, found = 0.7 / max(len(frame), 1), []
    for number, (_, row) in enumerate(frame.iterrows()):
        colour = PALETTE[(number + 1) % len(PALETTE)]
        places = np.arange(len(names)) + step * (number - (len(frame) - 1) / 2)
        ax.plot(places, row[list(names)].to_numpy(float), "o", color=colour, markersize=6, label=str(row[label]))
        for place, name in zip(places, names, strict=True):
            ends = row[[f"{name}_low", f"{name}_high"]].to_numpy(float)
            ax.plot([place, place], ends, "-", color=colour, linewidth=2, label=f"_{row[label]}: {name}")
        found.append(places)
    ax.set_xticks(range(len(names)), ticks)
    ax.set(ylabel="%", ylim=(0, 100))
    ax.grid(axis="y", color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return found


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
