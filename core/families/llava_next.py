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
        patch, side = int(vision.patch_size), int(vision.image_size) // int(vision.patch_size)
        height, width = prepared.size
        whole = (0.0, 0.0, float(width), float(height))
        best = select_best_resolution([height, width], self.processor.image_processor.image_grid_pinpoints)
        h, cut_y = _unpadded(best[0] // patch, best[1] // patch, height, width)
        w, cut_x = _unpadded(best[1] // patch, best[0] // patch, width, height)
        expected = side * side + h * (w + 1)
        if count != expected:
            raise self.mismatch(expected, count, f"a base of {side} x {side} and {h} rows of {w} and a newline")
        base = View("base", self.grid(0, side, side), whole)
        if h == 0 or w == 0:
            return (base,)
        new_h, new_w = _fitted(height, width, best)
        y0 = cut_y * patch - (best[0] - new_h) // 2  # in pixels of the fitted image
        x0 = cut_x * patch - (best[1] - new_w) // 2
        x1, y1 = x0 + w * patch, y0 + h * patch
        box = (x0 * width / new_w, y0 * height / new_h, x1 * width / new_w, y1 * height / new_h)
        return base, View("grid", self.grid(side * side, h, w, row_length=w + 1), box)


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
