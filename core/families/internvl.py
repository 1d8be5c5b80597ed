"""InternVL, Aya Vision, Command A Vision: square tiles of the squashed image, row by row, and a thumbnail last."""

from __future__ import annotations

import sys
from math import isqrt

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class InternVL(Family):
    """Views "base" (the image squashed to a square) and "grid" (the stitched tiles; the default).

    An image that one tile is enough for has the view "base" only. Tiling stretches the image to the tiles, so that
    both views cover all of it.
    """

    @property
    def tile_tokens(self) -> int:
        """Visual tokens per tile."""
        return int(self.processor.image_seq_length)

    def accepts_any_aspect(self, image: object) -> bool:
        """The number of tiles is bounded."""
        return True

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The thumbnail comes last, behind more than one tile."""
        side, box, processor = isqrt(self.tile_tokens), self.whole(prepared), self.processor.image_processor
        if count == side * side:
            return (View("base", self.grid(0, side, side), box),)
        tile = (processor.size["height"], processor.size["width"])
        arrange = sys.modules[type(processor).__module__].get_optimal_tiled_canvas  # each processor has its own
        columns, rows = arrange(prepared.size, tile, processor.min_patches, processor.max_patches)
        tiles = rows * columns * side * side
        if count != tiles + side * side:
            raise self.mismatch(tiles + side * side, count, f"{rows} x {columns} tiles and one, {side} x {side} each")
        base = View("base", self.grid(tiles, side, side), box)
        return base, View("grid", self.tiles(0, rows, columns, side), box)


class AyaVision(InternVL):
    """The same; a token of its own stands in front of each tile."""

    @property
    def tile_tokens(self) -> int:
        """Visual tokens per tile."""
        return (int(self.processor.img_size) // int(self.processor.patch_size)) ** 2


class Cohere2Vision(InternVL):
    """The same; a token of its own stands behind each tile."""

    @property
    def tile_tokens(self) -> int:
        """Visual tokens per tile; what the processor calls `patch_size` is a tile's cells per side."""
        return int(self.processor.patch_size) ** 2
