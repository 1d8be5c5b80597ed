"""The highest pixel of bicubically resampled maps, found without resampling them whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from core.geometry import View, cell_positions, cubic_weights

SLOPE = 0.25  # a third of the slope of cubic convolution in a cell, by the difference of its neighbours: -a = 0.75
ROUNDING = 2.0**-19  # float32 resampling is off by less than this share of the largest cell it reads (ten roundings)
TINY, HUGE = 2.0**-120, 1e37  # beyond these float32 loses more than its last bits
MAPS_AT_ONCE = 2**21  # cells of maps whose bounds are computed at a time: 16 MB each
VALUES_AT_ONCE = 2**21  # pixels computed at a time: 16 MB


def certain_peaks(
    grids: Float[Tensor, "p h w"],
    owners: Int64[Tensor, " p"],
    number: int,
    view: View,
    seen: tuple[slice, slice],
) -> Int64[Tensor, "g 2"]:
    """(row, column) of the highest pixel among the maps of each owner; (-1, -1) where rounding decides between several.

    Between four cell centres a resampled map is a bicubic surface, which stays below its Bezier control points. Only
    blocks where those reach the highest value found are computed, in float64. A peak is certain where float32 chooses
    the same pixel, however it orders its sums; that leaves ties, flat maps and values that are not finite.

    Args:
        grids: maps over the view's cells.
        owners: which of `number` groups each map belongs to.
        number: groups g.
        view: the grid's place on the image.
        seen: rows and columns of the image that count.

    Source: cubic convolution with a = -0.75 is a cubic Hermite curve, which lies in its control points' convex hull.
    """
    grids = grids.detach().to("cpu", torch.float64)
    usable = grids.abs().amax((1, 2)) < HUGE  # not so of what is not finite, either
    undecided = torch.zeros(number, dtype=torch.bool)
    undecided[owners[~usable]] = True
    x0, y0, x1, y1 = view.box
    search = _Search(
        pad(grids.where(usable[:, None, None], 0.0)[:, None], (2, 2, 2, 2), mode="replicate")[:, 0],
        owners,
        _Axis.of(view.shape[0], y0, y1, seen[0]),
        _Axis.of(view.shape[1], x0, x1, seen[1]),
        torch.full((number,), -torch.inf, dtype=torch.float64),
    )
    return search.run(undecided)


@dataclass(frozen=True)
class _Axis:
    """The pixels of one axis by block: block b lies between the centres of cells b - 1 and b."""

    counts: Int64[Tensor, " b"]
    pixels: Int64[Tensor, "b n"]  # the last one of a block repeated to fill up
    weights: Float64[Tensor, "b n 4"]  # of the cells b - 2 ... b + 1

    @classmethod
    def of(cls, cells: int, start: float, end: float, seen: slice) -> _Axis:
        low, weights = cubic_weights(cell_positions(cells, start, end, seen.stop)[seen.start :])
        counts = torch.bincount(low.long() + 1, minlength=cells + 1)
        within = torch.minimum(torch.arange(int(counts.max())), (counts - 1).clamp(min=0)[:, None])
        index = ((counts.cumsum(0) - counts)[:, None] + within).clamp(max=len(low) - 1)
        return cls(counts, index + seen.start, weights[index])


@dataclass(frozen=True)
class _Search:
    """Maps whose border cells are repeated twice, float64 [p, h + 4, w + 4], and what is known of their peaks."""

    cells: Tensor
    owners: Tensor
    rows: _Axis
    columns: _Axis
    floor: Tensor  # [g], what float32 finds at least

    def run(self, undecided: Tensor) -> Tensor:
        """The peaks [g, 2]; also undecided where so many blocks remain that upsampling whole costs no more."""
        bound = torch.cat([self._bounds(part) for part in self.cells.split(self._maps_at_once())] or [self.cells])
        across, every = len(self.columns.counts), torch.arange(len(bound))
        best = bound.flatten(1).argmax(1)
        self._compute(torch.stack([every, best // across, best % across], 1))
        blocks = (bound >= self.floor[self.owners][:, None, None]).nonzero()
        blocks = blocks[self._reaches(blocks)]
        owned = self.owners[blocks[:, 0]]
        most = max(16, bound[:1].numel() // 8) * torch.bincount(self.owners, minlength=len(self.floor))
        undecided = undecided | (torch.bincount(owned, minlength=len(most)) > most)
        owners, pixels, highest = self._compute(blocks[~undecided[owned]])
        near = highest >= self.floor[owners]
        first, last = (
            torch.full((len(most),), -1).scatter_reduce_(0, owners[near], pixels[near], how, include_self=False)
            for how in ("amin", "amax")
        )
        width = int(self.columns.pixels.max()) + 1
        peaks = torch.stack([first // width, first % width], 1)
        return peaks.masked_fill((undecided | (first != last) | (first < 0))[:, None], -1)

    def _maps_at_once(self) -> int:
        return max(1, MAPS_AT_ONCE // max(1, self.cells[:1].numel()))

    def _bounds(self, cells: Tensor) -> Tensor:
        """[p, b, c]: what no float32 value in a block exceeds; -inf for blocks without a pixel."""
        curves = (_control_points(along, 1) for along in _control_points(cells, 2))
        bound = reduce(torch.maximum, (points for curve in curves for points in curve))
        bound = bound + _rounding(_windows_max(_windows_max(cells.abs(), 1), 2))
        empty = (self.rows.counts == 0)[:, None] | (self.columns.counts == 0)
        return bound.masked_fill(empty, -torch.inf)

    def _reaches(self, blocks: Tensor) -> Tensor:
        """bool [n]: of the blocks (map, b, c) those whose finer control points reach the floor, too."""
        quarters, kept = _quarters(), []
        for part in blocks.split(VALUES_AT_ONCE // len(quarters) ** 2):
            cells, owner = self._cells(part)
            bound = (quarters @ cells @ quarters.mT).amax((1, 2)) + _rounding(cells.abs().amax((1, 2)))
            kept.append(bound >= self.floor[owner])
        return torch.cat([*kept, torch.zeros(0, dtype=torch.bool)])

    def _cells(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """The cells [n, 4, 4] that blocks (map, b, c) read, and the owners [n] of their maps."""
        number, row, column = blocks.unbind(1)
        return self.cells.unfold(1, 4, 1).unfold(2, 4, 1)[number, row, column], self.owners[number]

    def _compute(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raise the floor by the blocks (map, b, c). Returns of pixels that may be peaks owners, numbers in
        row order, and the highest values that float32 may give them.
        """
        (_, tall), (_, wide) = self.rows.pixels.shape, self.columns.pixels.shape
        found = []
        for part in blocks.split(max(1, VALUES_AT_ONCE // (tall * wide))):
            (cells, owner), (_, row, column) = self._cells(part), part.unbind(1)
            values = self.rows.weights[row] @ cells @ self.columns.weights[column].mT
            error = _rounding(cells.abs().amax((1, 2)))
            self.floor.scatter_reduce_(0, owner, values.amax((1, 2)) - error, "amax")
            highest = values + error[:, None, None]
            block, i, j = (highest >= self.floor[owner][:, None, None]).nonzero(as_tuple=True)
            y, x = self.rows.pixels[row[block], i], self.columns.pixels[column[block], j]
            found.append((owner[block], y * (int(self.columns.pixels.max()) + 1) + x, highest[block, i, j]))
        none = torch.zeros(0, dtype=torch.int64)
        return tuple(map(torch.cat, zip(*found, (none, none, none.double()), strict=True)))


def _control_points(cells: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The four Bezier control points of cubic convolution between two cells, for all four neighbours along an axis."""
    before, start, end, behind = (cells.narrow(dim, tap, cells.shape[dim] - 3) for tap in range(4))
    return start, start + SLOPE * (end - before), end - SLOPE * (behind - start), end


def _halved(points: Tensor) -> Tensor:
    """From the control points of a curve, [4, n], those of both its halves, [7, n], by de Casteljau's construction."""
    rows = [points]
    while len(rows[-1]) > 1:
        rows.append((rows[-1][1:] + rows[-1][:-1]) / 2)
    return torch.cat([torch.stack([row[0] for row in rows]), torch.stack([row[-1] for row in rows[-2::-1]])])


def _quarters() -> Float64[Tensor, "13 4"]:
    """From four neighbours to the control points of the curve between the inner two, in quarters."""
    whole = torch.stack(_control_points(torch.eye(4, dtype=torch.float64), 0))[:, 0]
    halves = _halved(whole)
    return torch.cat([_halved(halves[:4]), _halved(halves[3:])[1:]])


def _windows_max(values: Tensor, dim: int) -> Tensor:
    """The largest of every four neighbours."""
    return reduce(torch.maximum, (values.narrow(dim, tap, values.shape[dim] - 3) for tap in range(4)))


def _rounding(largest: Tensor) -> Tensor:
    return ROUNDING * largest + TINY
