"""Table 1 as pictures: PAcc with intervals beside the paper's, mask AP and AR by object size."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import PALETTE, new_axes, plot_intervals


def plot_scores_by_size(frame: pd.DataFrame, *, label: str = "method", ax: Axes | None = None) -> Axes:
    """Mask AP and AR (percent) by object size, one bar per row of `frame`; rows without any number are left out."""
    ax = new_axes(max(9, 1.5 * len(frame)), 3.6) if ax is None else ax
    names = [name for name in ("AP_S", "AP_M", "AP_L", "AP", "AR_S", "AR_M", "AR_L", "AR") if name in frame]
    shown = frame.dropna(subset=names, how="all")
    colours = _colours(shown[label].tolist(), "#999999", [PALETTE[place] for place in (1, 2, 3, 4, 5, 7, 0, 8, 9)])
    many = len(shown) > 2
    positions = np.arange(len(names)) + 0.5 * np.array([name.startswith("AR") for name in names])
    width = 0.8 / max(len(shown), 1)
    for number, (_, row) in enumerate(shown.iterrows()):
        heights = row[names].to_numpy(float)
        bars = ax.bar(positions + number * width, heights, width, color=colours[number], label=str(row[label]))
        numbers = ["none" if np.isnan(height) else f"{height:.1f}" for height in heights]
        ax.bar_label(bars, labels=numbers, fontsize=6.5 if many else 7.5, rotation=90 if many else 0, padding=1)
    ax.set_xticks(positions + 0.4 - width / 2, [name.replace("_", " ") for name in names])
    top = np.nanmax([0.0, *shown[names].to_numpy(float).ravel()])
    ax.set(ylabel="%", ylim=(0, max((1.45 if many else 1.25) * top, 5)), xlim=(-0.3 * width - 0.1, positions[-1] + 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper center", ncols=4 if many else 2)
    return ax


def _colours(methods: Sequence[str], chance: str, models: Sequence[str]) -> list[str]:
    """One colour per row: grey for random points, those of `models` in turn for the others."""
    blind = [str(method).startswith("Random Point") for method in methods]
    places = np.cumsum(np.logical_not(blind)) - 1
    return [chance if grey else models[place % len(models)] for grey, place in zip(blind, places, strict=True)]


def plot_pilot_study(ours: pd.DataFrame, paper: pd.DataFrame, *, headline: str = "measured here") -> Figure:
    """PAcc of our rows with 95 % intervals above, the paper's rows in grey below, on Axes of their own: other models,
    other data.

    Args:
        ours: `analysis.pilot_study.table.pilot_table`.
        paper: `analysis.paper.paper_table(1)` with a `method` column.
        headline: what made ours.
    """
    figure, axes = plt.subplots(
        2,
        1,
        figsize=(8, 1.6 + 0.42 * (len(ours) + len(paper))),
        height_ratios=[len(ours) + 0.4, len(paper)],
        layout="constrained",
    )
    plot_intervals(
        ours,
        label="method",
        low="PAcc_low",
        high="PAcc_high",
        colours=_colours(ours["method"].tolist(), "#777777", PALETTE[1:2]),
        ax=axes[0],
    )
    axes[0].set_title(headline, loc="left", fontsize=9)
    plot_intervals(paper, label="method", colours="#AAAAAA", ax=axes[1])
    axes[1].set_title(
        f"published: {paper['source'].iloc[0]}, {paper['data'].iloc[0]}", loc="left", fontsize=9, color="#666"
    )
    for ax in axes:
        ax.set_xlim(0, max(10.0, np.nanmax([*ours["PAcc_high"], *ours["PAcc"], *paper["PAcc"]]) * 1.08))
    return figure
