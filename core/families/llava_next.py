"""LLaVA-NeXT (anyres): a thumbnail of the whole image, then a tiled grid without its padding, with newline slots."""

from __future__ import annotations

from math import ceil

from PIL import Image
from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class LlavaNext(Family):
    """Views "base" (the image squashed to a square) and "grid" (the stitched high-resolution tiles; the default)."""

    def accepts_any_aspect(self, image: Image.Image) -> bool:
        """The image is made to fit one of a few resolutions."""
        return True

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The thumbnail's tokens come first; then each row of the grid and, after it, one newline slot.

        An image so narrow that nothing of it is left after un-padding has the view "base" only.
        """
        from transformers.image_processing_utils import select_best_resolution

        vision = self.model.config.vision_config
        patch, tile = int(vision.patch_size), int(vision.image_size)
        side = tile // patch
        height, width = prepared.size
        best = select_best_resolution([height, width], self.processor.image_processor.image_grid_pinpoints)
        tiles_y, tiles_x = (max(length // tile, 1) for length in best)
        rows, columns = tiles_y * side, tiles_x * side
        h, cut_y = _unpadded(rows, columns, height, width)
        w, cut_x = _unpadded(columns, rows, width, height)
        grid_h, grid_w = self.resampled(h, w, side)
        expected = side * side + grid_h * (grid_w + 1)
        if count != expected:
            raise self.mismatch(
                expected, count, f"a base of {side} x {side} and {grid_h} rows of {grid_w} and a newline"
            )
        covered = side * patch / tile  # less than 1 where the patches leave a rest of the tile
        base = View("base", self.grid(0, side, side), (0.0, 0.0, width * covered, height * covered))
        if grid_h == 0 or grid_w == 0:
            return (base,)
        new_h, new_w = _fitted(height, width, best)
        y0, y1 = _edges(cut_y, cut_y + h, tiles_y, tile, side, patch)  # in pixels of the padded image
        x0, x1 = _edges(cut_x, cut_x + w, tiles_x, tile, side, patch)
        pad_y, pad_x = (best[0] - new_h) // 2, (best[1] - new_w) // 2
        box = ((x0 - pad_x) * width / new_w, (y0 - pad_y) * height / new_h)
        box += ((x1 - pad_x) * width / new_w, (y1 - pad_y) * height / new_h)
        return base, View("grid", self.grid(side * side, grid_h, grid_w, row_length=grid_w + 1), box)

    def resampled(self, h: int, w: int, side: int) -> tuple[int, int]:
        """Cells of the un-padded grid of h x w cells after the model has resampled it; `side` is a tile's."""
        return h, w


def _edges(first: int, last: int, tiles: int, tile: int, side: int, patch: int) -> tuple[float, float]:
    """Pixels where cell `first` begins and the one before `last` ends, of `tiles` in a row of `side` cells each.

    Where patches leave a rest of each tile uncovered, cells of one tile lie closer than tiles do; equal cells are
    then wrong by at most half the rest.
    """
    start, step = (0.0, float(patch)) if tiles == 1 else ((side * patch - tile) / 2, tile / side)
    return start + first * step, start + last * step


def _fitted(height: int, width: int, best: tuple[int, int]) -> tuple[int, int]:
    """(H, W) in which the processor fits the image into the best resolution."""
    scale_h, scale_w = best[0] / height, best[1] / width
    if scale_w < scale_h:
        return min(ceil(height * scale_w), best[0]), best[1]
    return best[0], min(ceil(width * scale_h), best[1])


def _unpadded(cells: int, other_cells: int, length: int, other: int) -> tuple[int, int]:
    """Cells left on one axis after un-padding, and cells cut at its start; `other` is the other axis.

    The model compares aspect ratios, so that only the axis that was padded is cut.
    """
    if other / length <= other_cells / cells:
        return cells, 0
    kept = int(round(length * (other_cells / other), 7))
    cut = (cells - kept) // 2
    return cells - 2 * cut, cut
