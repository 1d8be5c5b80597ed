"""LLaVA with a Pixtral tower, and Mistral 3: one grid of any aspect, its rows separated by tokens of their own."""

from __future__ import annotations

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Pixtral(Family):
    """One view, "image", over the whole picture; both sides are rounded up to whole cells separately."""

    merge = 1  # patches per cell and side

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The tokens that break rows have another id, so that the visual tokens alone are row-major."""
        cell = int(self.model.config.vision_config.patch_size) * self.merge
        h, w = (int(side) // cell for side in inputs["image_sizes"][sample])
        if count != h * w:
            raise self.mismatch(h * w, count, f"a grid of {h} x {w}")
        return (View("image", self.grid(0, h, w), self.whole(prepared)),)


class Mistral3(Pixtral):
    """The same with patches merged, 2 x 2 in the published models."""

    @property
    def merge(self) -> int:
        """Patches per cell and side."""
        return int(self.model.config.spatial_merge_size)
