"""Axes-level plots (data first, `ax=None`, the Axes returned, nothing saved or shown) and one `save_figure`.

Every mark that carries data is a plain matplotlib artist, so `drawn_numbers` reads back what a figure shows, and that
is what the CSV beside each PNG and PDF holds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image

PALETTE = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255", "#999933", "#6A3D9A")
"""Colours that stay apart for colour-blind readers: Okabe and Ito's, then Paul Tol's."""

SEQUENTIAL, DIVERGING = "magma", "RdBu_r"
PICTURE = "picture"  # gid of images that are pictures, not data


def shared_norm(values: Any, *, center: float | None = None, quantile: float = 1.0) -> Normalize:
    """One colour scale for many maps: symmetric about `center` if given, else from 0; `quantile` < 1 clips extremes."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        return Normalize(0.0 if center is None else center - 1.0, 1.0 if center is None else center + 1.0)
    if center is None:
        return Normalize(0.0, float(np.quantile(values, quantile)) or 1.0)
    reach = float(np.quantile(np.abs(values - center), quantile)) or 1.0
    return Normalize(center - reach, center + reach)


def new_axes(width: float | int, height: float | int) -> Axes:
    """An Axes on a new figure of so many inches, for plots that were given none."""
    return plt.subplots(figsize=(width, height))[1]


def tint(colour: str, strength: float = 0.32) -> str:
    """A pale shade of a colour, as a background for dark text."""
    return to_hex(1 - strength * (1 - np.asarray(to_rgb(colour))))


def picture_uri(image: Image.Image, *, kind: str = "png", **options: Any) -> str:
    """A picture in a data URI, so that a page needs no file beside it; `kind` is png or jpeg, `options` are PIL's."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def plot_overlay(
    image: Any,
    masks: Sequence[Bool[np.ndarray, "H W"]],
    colours: Sequence[str],
    *,
    points: Sequence[tuple[float, float]] = (),
    alpha: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Masks over a picture, each in its colour with an outline, and the prompt points (x, y) in pixels as dots.

    Args:
        image: RGB picture of the masks' size.
        masks, colours: one colour per mask.
        points: prompt points to mark, in the masks' order.
        alpha: opacity of the fill.
    """
    ax = new_axes(5, 4) if ax is None else ax
    picture = np.asarray(image)
    height, width = picture.shape[:2]
    frame = (0, width, height, 0)
    ax.imshow(picture, extent=frame, gid=PICTURE)
    for mask, colour in zip(masks, colours, strict=True):
        layer = np.zeros((*mask.shape, 4))
        layer[..., :3] = to_rgb(colour)
        layer[..., 3] = alpha * mask
        ax.imshow(layer, extent=frame, gid=PICTURE, interpolation="nearest")
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
            for line, thickness in (("white", 2.6), (colour, 1.6)):
                ax.contour(x, y, mask.astype(float), levels=[0.5], colors=[line], linewidths=thickness)
    for (x, y), colour in zip(points, colours, strict=False):
        ax.plot([x], [y], "o", color=colour, markeredgecolor="white", markersize=6, clip_on=False, label="prompt point")
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return ax


def plot_map_on_image(
    image: Any,
    values: Float[np.ndarray, "h w"],
    box: tuple[float, float, float, float],
    *,
    norm: Normalize | None = None,
    center: float | None = None,
    point: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One attention map where it lies on the picture: cells are drawn in their view's box, over the picture in grey.

    Args:
        image: the original picture.
        values: the map on the view's grid.
        box: (x0, y0, x1, y1) of the grid in pixels of the picture, `View.box`.
        norm: shared colour scale; by default the map's own.
        center: 0 for normalised maps (a diverging scale); None for raw attention.
        point: prompt point (x, y) to mark.
    """
    ax = new_axes(5, 4) if ax is None else ax
    grey = np.asarray(image).mean(axis=2)
    height, width = grey.shape
    x0, y0, x1, y1 = box
    ax.imshow(grey, extent=(0, width, height, 0), cmap="gray", vmin=-60, vmax=255, gid=PICTURE)
    norm = shared_norm(values, center=center) if norm is None else norm
    cmap = SEQUENTIAL if center is None else DIVERGING
    ax.imshow(
        values, extent=(x0, x1, y1, y0), cmap=cmap, norm=norm, alpha=0.62, interpolation="bicubic", label="attention"
    )
    if point is not None:
        ax.plot(
            [point[0]],
            [point[1]],
            "o",
            color="white",
            markeredgecolor="black",
            markersize=5,
            clip_on=False,
            label="prompt point",
        )
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.axis("off")
    return ax


def plot_intervals(
    frame: pd.DataFrame,
    *,
    label: str,
    value: str = "PAcc",
    low: str = "low",
    high: str = "high",
    colours: Sequence[str] | str = PALETTE[1],
    unit: str = "%",
    ax: Axes | None = None,
) -> Axes:
    """One dot per row with its interval (where it has one), the first row on top, its number beside it.

    Args:
        frame: one row per dot.
        label, value, low, high: its columns; `low` and `high` may be missing.
        colours: one for all dots, or one each.
        unit: of the numbers.
    """
    ax = new_axes(7, 1 + 0.5 * len(frame)) if ax is None else ax
    colours = [colours] * len(frame) if isinstance(colours, str) else list(colours)
    for position, (_, row) in enumerate(frame.iterrows()):
        bounds = [row.get(low, np.nan), row.get(high, np.nan)]
        if not np.isnan(bounds).any():
            ax.plot(
                bounds,
                [position, position],
                "-",
                color=colours[position],
                linewidth=2.2,
                label=f"{row[label]}: interval",
            )
        if not np.isnan(row[value]):
            ax.plot([row[value]], [position], "o", color=colours[position], markersize=7, label=str(row[label]))
            ax.annotate(
                f"{row[value]:.1f}",
                (row[value], position),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    ax.set_yticks(range(len(frame)), [str(name) for name in frame[label]])
    ax.set_ylim(len(frame) - 0.5, -0.6)
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]) if (frame[value] < 0).any() else 0.0)
    ax.set_xlabel(f"{value} ({unit})")
    ax.grid(axis="x", color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def drawn_numbers(figure: Figure) -> pd.DataFrame:
    """Every number that a figure draws, read back from its artists.

    Returns:
        Columns `axes` (title or number), `artist` (its label), `kind` ("line", "bar" or "map"), `row`, `column` (of a
        map's cell, or the vertex number), `x`, `y` (of a line's vertex), `value` (of a map's cell). Pictures and
        outlines are left out.
    """
    frames = []
    for number, ax in enumerate(figure.axes):
        name = ax.get_title() or ax.get_title(loc="left") or f"axes {number}"
        for line in ax.lines:
            x, y = (np.atleast_1d(np.asarray(values, dtype=float)) for values in line.get_data())
            vertices = {"row": 0, "column": np.arange(len(x)), "x": x, "y": y, "value": np.nan}
            frames.append(pd.DataFrame({"axes": name, "artist": line.get_label(), "kind": "line", **vertices}))
        for bars in ax.containers:
            if isinstance(bars, BarContainer):
                middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
                cells = {
                    "row": 0,
                    "column": np.arange(len(bars)),
                    "x": middles,
                    "y": [bar.get_height() for bar in bars],
                }
                frames.append(pd.DataFrame({"axes": name, "artist": bars.get_label(), "kind": "bar", **cells}))
        for image in ax.images:
            if image.get_gid() == PICTURE:
                continue
            values = np.asarray(image.get_array(), dtype=float)
            rows, columns = np.indices(values.shape)
            cells = {"row": rows.ravel(), "column": columns.ravel(), "x": np.nan, "y": np.nan, "value": values.ravel()}
            frames.append(pd.DataFrame({"axes": name, "artist": image.get_label(), "kind": "map", **cells}))
    columns = ["axes", "artist", "kind", "row", "column", "x", "y", "value"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def save_figure(figure: Figure | Axes, directory: str | Path, name: str, *, dpi: int = 150) -> tuple[Path, Path, Path]:
    """Write `name.png`, `name.pdf` and the drawn numbers as `name.csv`; returns their paths."""
    figure = figure.figure if isinstance(figure, Axes) else figure
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{name}.{ending}" for ending in ("png", "pdf", "csv"))
    figure.savefig(paths[0], dpi=dpi, bbox_inches="tight", facecolor="white")
    figure.savefig(paths[1], dpi=dpi, bbox_inches="tight", facecolor="white")
    drawn_numbers(figure).to_csv(paths[2], index=False, float_format="%.6g")
    return paths
