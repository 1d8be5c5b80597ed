"""Gemma 4: one grid of any aspect, patches pooled 3 x 3."""

from __future__ import annotations

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Gemma4(Family):
    """One view, "image", over the whole picture; both sides are rounded down to whole cells separately."""

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The processor says the place (x, y) of each patch, and (-1, -1) for none."""
        pooled = int(self.model.config.vision_config.pooling_kernel_size)
        columns, rows = (inputs["image_position_ids"][sample].amax(dim=0) + 1).tolist()
        h, w = rows // pooled, columns // pooled
        if count != h * w:
            raise self.mismatch(h * w, count, f"a grid of {h} x {w}")
        return (View("image", self.grid(0, h, w), self.whole(prepared)),)
