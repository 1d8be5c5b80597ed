"""LLaVA-OneVision: as LLaVA-NeXT, with a grid that is sampled down where it has too many cells."""

from __future__ import annotations

from math import sqrt

from core.families.llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """Views "base" and "grid"; `vision_aspect_ratio` ("anyres_max_9") bounds the cells of the grid."""

    def resampled(self, h: int, w: int, side: int) -> tuple[int, int]:
        """The model interpolates grids of more than about so many tiles' worth of cells."""
        most = int(self.processor.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(h * w / (most * side**2))
        return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)
