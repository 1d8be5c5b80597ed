"""LLaVA-OneVision: as LLaVA-NeXT, with a grid that is sampled down where it has too many cells."""

from __future__ import annotations

from math import sqrt

from core.families.base import Prepared
from core.families.llava_next import LlavaNext
from core.geometry import View


class LlavaOnevision(LlavaNext):
    """Views "base" and "grid"; `vision_aspect_ratio` ("anyres_max_9") bounds the cells of the grid."""

    def resampled(self, h: int, w: int, side: int) -> tuple[int, int]:
        """The model interpolates grids of more than about so many tiles' worth of cells."""
        most = int(self.processor.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(h * w / (most * side**2))
        return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)

    def among_others(self, prepared: Prepared) -> tuple[int, tuple[View, ...]]:
        """Several images are not tiled: each is padded to a square, and one newline slot ends it."""
        vision = self.model.config.vision_config
        patch, tile = int(vision.patch_size), int(vision.image_size)
        side, (height, width) = tile // patch, prepared.size
        square = max(height, width)
        x0, y0 = -((square - width) // 2), -((square - height) // 2)
        covered = square * side * patch / tile
        box = (float(x0), float(y0), x0 + covered, y0 + covered)
        return side * side + 1, (View("base", self.grid(0, side, side), box),)
