"""Cell to pixel: a bright square on the picture must change the visual features of the cell that it covers.

The features are what the decoder is given at the visual positions, so that the whole way is tried: the image processor,
the visual tower, the projector, the model's own reordering and the adapter's grid and box. Attention plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from core.doctor.findings import Finding
from core.doctor.subject import Subject
from core.geometry import View

SIZES = ((252, 390), (420, 270))  # (H, W) of the probed pictures: landscape and portrait
PLACES = ((0.1, 0.2), (0.25, 0.85), (0.45, 0.4), (0.6, 0.9), (0.8, 0.1), (0.9, 0.65))  # (row, column) shares of a grid
ENOUGH = 0.8  # share of the squares that must be found at their cell; chance is one in the number of cells
UNSEEN = 0.02  # of the largest change: a square that changes less lies on pixels that the model does not see
PART = 0.6  # of a cell's sides that a square is long
DRIFT = 0.35  # cells by which squares may be found off on average where features blur over neighbours
COLOURS = {"bright": (255, 255, 120), "faint": (120, 120, 105)}  # faint ones where bright ones upset the whole tower
_SEED = 0


@dataclass(frozen=True, eq=False)
class Probe:
    """One bright square.

    Attributes:
        view: name of the grid.
        size: (H, W) of the picture.
        box: the view's (x0, y0, x1, y1), in pixels of the picture.
        square: (x0, y0, x1, y1), whole pixels of the picture.
        expected: (row, column) of the cell that the adapter says lies there.
        found: (row, column) of the cell whose feature changed most; None if the square changed next to nothing.
        change: float32 [h, w], how much each cell's feature changed, relative to what it changes for other squares.
    """

    view: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    square: tuple[int, int, int, int]
    expected: tuple[int, int]
    found: tuple[int, int] | None
    change: Float[np.ndarray, "h w"]

    @property
    def off(self) -> tuple[int, int] | None:
        """(rows, columns) from where the square is to where it was found, if it was."""
        if self.found is None:
            return None
        return self.found[0] - self.expected[0], self.found[1] - self.expected[1]


def plain_picture(size: tuple[int, int]) -> Image.Image:
    """A dim picture (H, W) of soft blotches: nothing bright, and nothing uniform that towers were not trained on."""
    height, width = size
    blotches = np.random.default_rng(_SEED).integers(50, 100, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC)


def inner_cells(view: View, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Rows and columns of a view whose cells lie on the picture (H, W) and are at least four pixels wide."""
    h, w = view.shape
    rows = [r for r in range(h) if _inside(view.cell(r, 0)[1::2], size[0])]
    columns = [c for c in range(w) if _inside(view.cell(0, c)[0::2], size[1])]
    return rows, columns


def _inside(edges: tuple[float, ...], length: int) -> bool:
    return edges[0] > -0.5 and edges[1] < length + 0.5 and edges[1] - edges[0] >= 4


def check_places(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """One finding for each view; `told` is called before each kind of squares."""
    shown: dict[str, list[tuple[View, Image.Image, Tensor]]] = {}
    for size in SIZES:
        plain = plain_picture(size)
        before, batch = subject.features(plain)
        for view in batch.views[0]:
            shown.setdefault(view.name, []).append((view, plain, before))
    for name, pictures in shown.items():
        for kind, colour in COLOURS.items():
            told(f"view {name}, {kind} squares")
            probes = [probe for picture in pictures for probe in _probe(subject, *picture, colour)]
            status, seen = judge(probes, kind)
            if status != "unknown":
                break
        subject.probes += probes
        yield Finding(f"cell to pixel: {name}", status, seen)


def _probe(
    subject: Subject, view: View, plain: Image.Image, before: Tensor, colour: tuple[int, int, int]
) -> list[Probe]:
    size = (plain.height, plain.width)
    rows, columns = inner_cells(view, size)
    if not rows or not columns:
        return []
    cells = list(dict.fromkeys((rows[int(r * len(rows))], columns[int(c * len(columns))]) for r, c in PLACES))
    squares, changes = [], []
    for number, cell in enumerate(cells):
        square = _square(view, cell, size, outwards=number % 2 == 0)
        shown = plain.copy()
        shown.paste(colour, square)
        after, _ = subject.features(shown)
        squares.append(square)
        changes.append((after - before).norm(dim=-1)[view.index])
    change = torch.stack(changes)
    # a token that answers to everything, as some do in trained towers, says nothing about a place
    relative = change / (change.mean(0) + change.mean()).clamp(min=1e-30)
    unseen = change.amax((1, 2)) < UNSEEN * change.max()
    results = []
    for cell, square, values, missed in zip(cells, squares, relative, unseen.tolist(), strict=True):
        found = None if missed else divmod(int(values.argmax()), view.shape[1])
        results.append(Probe(view.name, size, view.box, square, cell, found, values.numpy()))
    return results


def _square(view: View, cell: tuple[int, int], size: tuple[int, int], *, outwards: bool) -> tuple[int, int, int, int]:
    """Whole pixels (x0, y0, x1, y1) in the corner of a cell that points away from the picture's middle, or towards it.

    Squares in the middle of coarse cells would still hit them where a box is too large or too small.
    """
    x0, y0, x1, y1 = view.cell(*cell)
    left, right = _part(x0, x1, size[1], outwards)
    top, bottom = _part(y0, y1, size[0], outwards)
    return left, top, right, bottom


def _part(start: float, end: float, length: int, outwards: bool) -> tuple[int, int]:
    """The part of [start, end] on that side, in whole pixels of an axis."""
    part = (end - start) * PART
    lower = ((start + end) / 2 < length / 2) == outwards
    low, high = (start, start + part) if lower else (end - part, end)
    first = max(0, math.ceil(low - 1e-6))
    return first, min(length, max(first + 1, math.floor(high + 1e-6)))


def judge(probes: list[Probe], kind: str = "bright") -> tuple[str, str]:
    """(status, words) for the squares, of one kind, of one view."""
    if not probes:
        return "unknown", "no cell of this grid lies wholly on a picture"
    needed = ENOUGH * len(probes)
    hits = sum(probe.off == (0, 0) for probe in probes)
    shapes = ", ".join(dict.fromkeys(f"{p.change.shape[0]} x {p.change.shape[1]} cells" for p in probes))
    seen = f"{hits} of {len(probes)} {kind} squares changed most the cell that they lie in ({shapes})"
    if hits >= needed:
        return "pass", seen
    for told, where in [*_MISTAKES.items(), *_tilings(probes)]:
        if sum(_near(probe, where(probe)) for probe in probes) >= needed:
            return "fail", f"{seen}; they are found where they would be if {told}"
    offs = [probe.off for probe in probes if probe.off is not None]
    if len(offs) < len(probes):
        seen += f", {len(probes) - len(offs)} changed nothing"
    if len(offs) < needed:
        return "fail", f"{seen}: they lie on pixels that the model does not see"
    drift, growth = _drift(probes)
    close = sum(max(map(abs, off)) <= 1 for off in offs)
    if close >= needed and max(*map(abs, drift), *map(abs, growth)) < DRIFT:
        return "pass", f"{seen}, the others a neighbour of it: places are right to one cell"
    distinct = len({(probe.size, probe.found) for probe in probes if probe.found})
    contrast = float(np.median([probe.change.max() / max(np.median(probe.change), 1e-30) for probe in probes]))
    if distinct >= needed and contrast > CONTRAST:
        mean = f"{drift[0]:+.1f} rows and {drift[1]:+.1f} columns off on average"
        away = f"{growth[0]:+.1f} rows and {growth[1]:+.1f} columns away from the middle"
        return "fail", f"{seen}, although every square changes one cell clearly; they are {mean}, {away}"
    return "unknown", f"{seen}; this tower's features do not tell where a square is"


def _drift(probes: list[Probe]) -> tuple[np.ndarray, np.ndarray]:
    """Means of (rows, columns): how far off squares were found; and how far away from the middle of the grid."""
    found = [probe for probe in probes if probe.off is not None]
    offs = np.array([probe.off for probe in found], dtype=float).reshape(-1, 2)
    middles = np.array([np.array(probe.change.shape) / 2 for probe in found]).reshape(-1, 2)
    sides = np.sign(np.array([probe.expected for probe in found]).reshape(-1, 2) + 0.5 - middles)
    return offs.sum(0) / max(len(found), 1), (sides * offs).sum(0) / np.abs(sides).sum(0).clip(1)


CONTRAST = 3.0  # times the median cell's change that the strongest must have, to say that features tell a place
Place = tuple[float, float]


def _shares(probe: Probe, cell: tuple[int, int]) -> Place:
    """(y, x) of a cell's centre as shares of the view's box."""
    h, w = probe.change.shape
    return (cell[0] + 0.5) / h, (cell[1] + 0.5) / w


def _near(probe: Probe, place: Place | None) -> bool:
    """Whether the square was found at a place, to within a cell."""
    if place is None or probe.found is None:
        return False
    h, w = probe.change.shape
    y, x = _shares(probe, probe.found)
    return abs(y - place[0]) * h < 0.99 and abs(x - place[1]) * w < 0.99


def _transposed(probe: Probe) -> Place:
    y, x = _shares(probe, probe.expected)
    return x, y


def _column_major(probe: Probe) -> Place:
    h, w = probe.change.shape
    return _shares(probe, divmod(probe.expected[1] * h + probe.expected[0], w))


def _sequence(shift: int) -> Callable[[Probe], Place | None]:
    def where(probe: Probe) -> Place | None:
        h, w = probe.change.shape
        position = probe.expected[0] * w + probe.expected[1] + shift
        row, column = divmod(position % (h * w), w)
        exact = probe.found == (row, column)
        return _shares(probe, (row, column)) if exact else None

    return where


def _tilings(probes: list[Probe]) -> Iterator[tuple[str, Callable[[Probe], Place | None]]]:
    """For every side of square tiles that all grids could be made of: where their cells are in a row-major reading."""
    shapes = {probe.change.shape for probe in probes}
    for side in range(2, min(min(shape) for shape in shapes) + 1):
        if not any(length % side for shape in shapes for length in shape):
            yield f"tiles of {side} x {side} cells came one after another", _tiled(side)


def _tiled(side: int) -> Callable[[Probe], Place]:
    def where(probe: Probe) -> Place:
        w = probe.change.shape[1]
        (tile_row, row), (tile_column, column) = divmod(probe.expected[0], side), divmod(probe.expected[1], side)
        position = (tile_row * (w // side) + tile_column) * side * side + row * side + column
        return _shares(probe, divmod(position, w))

    return where


_MISTAKES: dict[str, Callable[[Probe], Place | None]] = {
    "every cell were one position too late": _sequence(-1),
    "every cell were one position too early": _sequence(1),
    "rows and columns were exchanged": _transposed,
    "the positions ran down the columns": _column_major,
    "the grid were mirrored left to right": lambda probe: (
        _shares(probe, probe.expected)[0],
        1 - _shares(probe, probe.expected)[1],
    ),
    "the grid were upside down": lambda probe: (
        1 - _shares(probe, probe.expected)[0],
        _shares(probe, probe.expected)[1],
    ),
}
