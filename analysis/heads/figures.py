"""Every layer's heads as pictures: their maps of one token (Figure 5), how often each points right, and what goes with
that.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures import PALETTE, new_axes, shared_norm
from analysis.mosaics import plot_mosaic

UNITS = {"image mass": "image mass (%)", "spatial entropy": "spatial entropy (nats)"}


def plot_head_maps(
    maps: Float[np.ndarray, "l n h w"],
    *,
    norm: Normalize | None = None,
    center: float | None = None,
    colorbar: str = "attention",
    heading: str = "",
    ax: Axes | None = None,
) -> Axes:
    """All layers (rows) by heads (columns) of one token, on one colour scale (Figure 5), a heading above the heads.

    The scale ends at the 99.8th percentile unless `norm` is given, or a few cells of one head leave the rest dark.
    """
    layers, heads, height, width = maps.shape
    side = min(1.0, 14 / heads)  # inches of a tile
    ax = new_axes(1.5 + side * heads, 0.8 + side * layers * height / width) if ax is None else ax
    labels = [f"layer {layer} head {head}" for layer in range(layers) for head in range(heads)]
    flat = maps.reshape(-1, height, width)
    norm = shared_norm(flat, center=center, quantile=0.998) if norm is None else norm
    plot_mosaic(flat, labels, columns=heads, norm=norm, center=center, captions=False, colorbar=colorbar, ax=ax)
    pitch, tall = height / width + 0.08, height / width
    ax.set_title(heading, fontsize=9, pad=24)
    for layer in range(layers):
        ax.text(-0.12, layer * pitch + tall / 2, f"layer {layer}", ha="right", va="center", fontsize=8)
    for head in range(heads):
        ax.text(
            head * 1.08 + 0.5,
            -0.08,
            f"head {head}",
            ha="center",
            va="bottom",
            fontsize=8,
            rotation=90 if heads > 12 else 0,
        )
    return ax


def plot_head_accuracy(
    percent: Float[np.ndarray, "l n"],
    *,
    reference: float,
    chance: float | None = None,
    measure: str = "PAcc",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """PAcc (percent) of every head as a heat map; lines on the colour bar mark the mean over all heads and chance.

    Args:
        percent: the heads.
        reference: of the mean over all heads.
        chance: of a random point.
        measure: what the numbers are.
        layers, heads: which they are of, where they are not all of a model.
    """
    rows, columns = percent.shape
    ax = new_axes(min(12, 4 + 0.5 * columns), min(10, 1.5 + 0.4 * rows)) if ax is None else ax
    top = float(np.nanmax([1.0, reference, *percent.ravel()])) * 1.05
    drawn = ax.imshow(percent, cmap="viridis", vmin=0, vmax=top, label=measure, aspect="auto")
    ax.set(
        xlabel="head",
        ylabel="layer",
        xticks=range(0, columns, max(1, columns // 16)),
        yticks=range(0, rows, max(1, rows // 16)),
    )
    for axis, names in ((ax.xaxis, heads), (ax.yaxis, layers)):
        if names is not None:
            axis.set_ticklabels([str(names[int(place)]) for place in axis.get_ticklocs()])
    if percent.size <= 150:
        for (layer, head), value in np.ndenumerate(percent):
            colour = "white" if value < 0.6 * top else "black"
            ax.text(head, layer, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.06, pad=0.03)
    bar.ax.set_title(f"{measure} of\none head (%)", fontsize=8, pad=8)
    marks = {"mean over all heads": reference} | ({} if chance is None else {"random point": chance})
    for name, value in marks.items():
        if np.isnan(value):
            continue
        bar.ax.axhline(value, color=PALETTE[5] if name.startswith("mean") else "white", linewidth=2, label=name)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (28, 0), "textcoords": "offset points"}
        bar.ax.annotate(f"{name}: {value:.1f}", (1, value), va="center", fontsize=8, **place)
    bar.ax.set_ylim(0, top)
    return ax


def plot_head_statistics(heads: pd.DataFrame, correlations: pd.DataFrame, *, mean: float = float("nan")) -> Figure:
    """Each statistic against PAcc, a dot for each head in the colour of its layer.

    Args:
        heads: `analysis.heads.scores.head_table`.
        correlations: `analysis.heads.scores.rank_correlations`, whose numbers stand above.
        mean: PAcc of the mean map of all heads in percent, a line; nan draws none.
    """
    names = correlations["statistic"].tolist()
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 4), layout="constrained", sharey=True)
    layers = int(heads["layer"].max()) + 1
    for ax, row in zip(np.atleast_1d(axes), correlations.to_dict("records"), strict=True):
        for layer, own in heads.groupby("layer"):
            colour = matplotlib.colormaps["viridis"](layer / max(1, layers - 1))
            label = f"layer {layer}"
            ax.plot(own[row["statistic"]], own["PAcc"], "o", color=colour, markersize=7, alpha=0.85, label=label)
        if not np.isnan(mean):
            ax.axhline(mean, color=PALETTE[5], linewidth=1.5, label="mean map of all heads")
        ends = f"{row['correlation']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        ax.set_title(f"rank correlation {ends}", loc="left", fontsize=9)
        ax.set_xlabel(UNITS.get(row["statistic"], row["statistic"]))
        ax.grid(color="#ddd", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(axes)[0]
    first.set(ylabel="PAcc of the head alone (%)", ylim=(0, None))
    if layers <= 8:
        first.legend(frameon=False, fontsize=8)
    return figure
