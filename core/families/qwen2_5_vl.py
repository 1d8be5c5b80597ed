"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4.1V, GLM-4.6V: dynamic resolution, merged patches, positions in three axes."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Qwen2_5_VL(Family):
    """One view, "image", over the whole picture; both sides are rounded to whole cells separately."""

    image_block: ClassVar[str] = "<|vision_start|>{placeholder}<|vision_end|>"
    needs_position_ids: ClassVar[bool] = False  # the model derives all three axes from mm_token_type_ids

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The merger leaves the tokens in row-major order."""
        merge = int(self.model.config.vision_config.spatial_merge_size)
        _, rows, columns = inputs["image_grid_thw"][sample].tolist()
        h, w = rows // merge, columns // merge
        if count != h * w:
            raise self.mismatch(h * w, count, f"a grid of {h} x {w}")
        return (View("image", self.grid(0, h, w), self.whole(prepared)),)


class Glm4v(Qwen2_5_VL):
    """The same layout between other tokens."""

    image_block: ClassVar[str] = "<|begin_of_image|>{placeholder}<|end_of_image|>"
