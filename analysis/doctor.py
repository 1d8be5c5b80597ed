"""An examination to look at: its lines as a table, its bright squares as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from analysis.figures import SEQUENTIAL, new_axes
from analysis.tables import Provenance, Table

if TYPE_CHECKING:
    from core.doctor import Examination

FOUND = "#56B4E9"
EDGE = [withStroke(linewidth=3, foreground="black")]  # white and pale lines stay readable on bright cells
RESULTS = {"pass": "✓ ok", "fail": "✗ FAIL", "unknown": "? cannot tell", "skipped": "– skipped"}


def examination_table(found: Examination) -> Table:
    """One row a line: what was checked, how it came out, what was seen, and what to do where it did not pass."""
    rows = [
        {"line": each.line, "result": RESULTS[each.status], "seen": each.seen, "what it means": each.meaning}
        for each in found.findings
    ]
    frame = pd.DataFrame(rows, columns=["line", "result", "seen", "what it means"])
    if found.passed and not frame["what it means"].any():
        frame = frame.drop(columns="what it means")
    pictures = len({(probe.size) for probe in found.probes})
    model = {name: value for name, value in found.model.items() if name != "name_or_path"}
    made = Provenance(found.model["name_or_path"], "one picture and drawn squares", 1 + pictures, model)
    return Table(frame, f"Doctor: {found.headline()}", made)


def square_panels(found: Examination) -> list[dict[str, Any]]:
    """The squares of each view and picture as plain values, for `plot_squares` and `squares_figure`."""
    panels: dict[tuple, dict[str, Any]] = {}
    for probe in found.probes:
        named = {"view": probe.view, "size": probe.size, "box": probe.box, "shape": probe.change.shape}
        panel = panels.setdefault((probe.view, probe.size), named | {"changes": [], "squares": [], "found": []})
        panel["changes"].append(probe.change)
        panel["squares"].append(probe.square)
        panel["found"].append(probe.found)
    return [panel | {"changes": np.stack(panel["changes"])} for panel in panels.values()]


def squares_figure(panels: list[dict[str, Any]]) -> Figure:
    """All panels of an examination in one figure, a row for each view."""
    views = list(dict.fromkeys(panel["view"] for panel in panels))
    columns = max(sum(panel["view"] == view for panel in panels) for view in views)
    figure, axes = plt.subplots(
        len(views), columns, figsize=(4.2 * columns, 3.6 * len(views)), squeeze=False, layout="constrained"
    )
    for row, view in zip(axes, views, strict=True):
        shown = [panel for panel in panels if panel["view"] == view]
        for ax, panel in zip(row, [*shown, *[None] * (columns - len(shown))], strict=True):
            if panel is None:
                ax.axis("off")
            else:
                plot_squares(panel, ax=ax)
    return figure


def plot_squares(panel: dict[str, Any], *, ax: Axes | None = None) -> Axes:
    """One view on one picture: each bright square outlined, and the cell whose feature changed most as a dot.

    The shading is the strongest change of each cell over the squares, each square's own strongest being 1. Square and
    dot of one number belong together.

    Args:
        panel: `view`; `size` (H, W) of the picture; `box` and `shape` of the grid; `changes` [n, h, w]; `squares`, n
            times (x0, y0, x1, y1); `found`, n times (row, column) or None.
    """
    ax = new_axes(5, 4) if ax is None else ax
    height, width = panel["size"]
    x0, y0, x1, y1 = panel["box"]
    changes = np.asarray(panel["changes"], dtype=float)
    strongest = (changes / changes.max(axis=(1, 2), keepdims=True).clip(1e-12)).max(axis=0)
    ax.imshow(
        strongest, extent=(x0, x1, y1, y0), cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest", label="change"
    )
    h, w = strongest.shape
    for number, (square, cell) in enumerate(zip(panel["squares"], panel["found"], strict=True), start=1):
        left, top, right, bottom = square
        outline = {"fill": False, "edgecolor": "white", "linewidth": 1.6, "path_effects": EDGE}
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, **outline))
        written = {"fontsize": 9, "path_effects": EDGE, "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(str(number), (left, top), (2, -9), color="white", **written)
        if cell is not None:
            x, y = x0 + (cell[1] + 0.5) * (x1 - x0) / w, y0 + (cell[0] + 0.5) * (y1 - y0) / h
            ax.plot([x], [y], "o", color=FOUND, markeredgecolor="black", markersize=6, label=f"found {number}")
            ax.annotate(str(number), (x, y), (5, -9), color=FOUND, **written)
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    ax.set_title(f"{panel['view']}, picture of {width} × {height} px, {h} × {w} cells", fontsize=9)
    return ax
