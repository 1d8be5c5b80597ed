"""Many maps on one Axes and one colour scale: every token (Figure 6), every head (Figure 5), every head's accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis.figures import DIVERGING, SEQUENTIAL, new_axes, shared_norm


def plot_mosaic(
    maps: Float[np.ndarray, "tiles h w"],
    labels: Sequence[str],
    *,
    columns: int,
    norm: Normalize | None = None,
    center: float | None = None,
    captions: bool = True,
    colorbar: str = "attention",
    ax: Axes | None = None,
) -> Axes:
    """Many small maps in reading order on one Axes, all on one colour scale.

    Args:
        maps: the tiles.
        labels: one per tile; its caption beneath, and its name in the CSV.
        columns: tiles per row.
        norm, center: as in `plot_map_on_image`, shared by all tiles.
        captions: write the labels beneath the tiles.
        colorbar: label of the colour bar.
    """
    rows = -(-len(maps) // columns)
    tall = maps.shape[1] / maps.shape[2]
    pitch = tall + (0.34 if captions else 0.08)
    ax = new_axes(1 + 0.85 * columns, 0.6 + 0.8 * rows * pitch) if ax is None else ax
    norm = shared_norm(maps, center=center) if norm is None else norm
    cmap = SEQUENTIAL if center is None else DIVERGING
    drawn = None
    for number, (values, label) in enumerate(zip(maps, labels, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * 1.08, row * pitch
        box = (left, left + 1, top + tall, top)
        drawn = ax.imshow(values, extent=box, cmap=cmap, norm=norm, interpolation="nearest", label=label)
        if captions:
            ax.text(left + 0.5, top + tall + 0.05, label, ha="center", va="top", fontsize=7.5, parse_math=False)
    ax.set(xlim=(-0.02, 1.08 * min(columns, max(len(maps), 1)) - 0.06), ylim=(rows * pitch, -0.02), aspect="equal")
    ax.axis("off")
    if drawn is not None:
        extend = "both" if center is not None else "max"
        clipped = bool(np.asarray(maps).max() > norm.vmax * (1 + 1e-6))
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.02, pad=0.015, extend=extend if clipped else "neither")
        bar.set_label(colorbar, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return ax
