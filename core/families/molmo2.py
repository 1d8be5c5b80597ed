"""Molmo 2: a thumbnail of the whole image, then one grid from overlapping crops of it; rows end in their own tokens."""

from __future__ import annotations

import sys

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Molmo2(Family):
    """Views "base" (the image squashed to a square) and "grid" (the crops without their overlaps; the default).

    Patches are pooled two by two. Where their number is odd, the last cell of an axis sticks out of the image.
    """

    def accepts_any_aspect(self, image: object) -> bool:
        """The number of crops is bounded."""
        return True

    def attends_both_ways(self, prompt_ids: Tensor) -> int:
        """Up to the token that closes the picture."""
        closing = (prompt_ids == self.model.config.image_end_token_id).nonzero()[:, 0]
        return int(closing.max()) + 1

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The thumbnail comes first; tokens that end a row have another id."""
        processor = self.processor.image_processor
        h, w, rows, columns = inputs["image_grids"][sample].tolist()
        if count != h * w + rows * columns:
            raise self.mismatch(h * w + rows * columns, count, f"grids of {h} x {w} and {rows} x {columns}")
        options = {"max_crops": processor.max_crops, "overlap_margins": processor.overlap_margins}
        options |= {"crop_size": processor.size["height"], "patch_size": processor.patch_size}
        *_, height, width = sys.modules[type(processor).__module__].compute_crop_geometry(*prepared.size, **options)
        side = int(processor.size["height"])
        base = View("base", self.grid(0, h, w), self._box(prepared, h, w, side, side))
        return base, View("grid", self.grid(h * w, rows, columns), self._box(prepared, rows, columns, height, width))

    def _box(self, prepared: Prepared, h: int, w: int, height: int, width: int) -> tuple[float, float, float, float]:
        """What h x w cells cover, of an image resized to (height, width)."""
        pool_h, pool_w = self.processor.image_processor.pooling_size
        y0, y1 = self._edges(h * pool_h, height, prepared.size[0])
        x0, x1 = self._edges(w * pool_w, width, prepared.size[1])
        return x0, y0, x1, y1

    def _edges(self, pooled: int, length: int, original: int) -> tuple[float, float]:
        """Where `pooled` patches begin and end; those that the resized `length` does not have lie outside it."""
        patches = length // int(self.processor.image_processor.patch_size)
        first = -((pooled - patches) // 2)
        return first * original / patches, (first + pooled) * original / patches
