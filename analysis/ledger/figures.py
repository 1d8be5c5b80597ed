"""The error ledger as stacked bars, with the two upper bounds marked."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import new_axes

COLOURS = {
    "not said": "#999999",
    "no match": "#56B4E9",
    "attention missed": "#E69F00",
    "segmenter missed": "#CC79A7",
    "counted": "#009E73",
}
MARKS = {"oracle point": "D", "oracle mask": "s"}


def plot_ledger(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """One bar of 100 % for each system, what is counted first; marks show what true points and true masks would count.

    Args:
        table: `analysis.ledger.ledger.ledger_table`.
    """
    methods = list(dict.fromkeys(table["method"]))
    ax = new_axes(9.5, 1.6 + 0.55 * len(methods)) if ax is None else ax
    shares = table.pivot(index="method", columns="object", values="share").loc[methods]
    places, start = np.arange(len(methods)), np.zeros(len(methods))
    for name in reversed(COLOURS):
        widths = shares[name].to_numpy(float)
        ax.barh(places, widths, left=start, color=COLOURS[name], height=0.62, label=name)
        for place, left, width in zip(places, start, widths, strict=True):
            if width >= 4:
                ax.text(left + width / 2, place, f"{width:.1f}", ha="center", va="center", fontsize=8.5)
        start = start + widths
    for name, mark in MARKS.items():
        ax.plot(shares[name], places, mark, color="black", markersize=6, markerfacecolor="white", label=name)
    ax.set_yticks(places, methods)
    ax.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5), xlabel="share of the true objects (%)")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.28))
    return ax
