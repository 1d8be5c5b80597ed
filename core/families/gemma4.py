"""Gemma 4: one grid of any aspect, patches pooled 3 x 3."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.errors import GroundingError
from core.families.base import Family, Prepared
from core.geometry import View


class Gemma4(Family):
    """One view, "image", over the whole picture; both sides are rounded down to whole cells separately.

    Raises:
        GroundingError: the model's last layers share the keys of earlier ones (E2B, E4B). Of a prompt they compute the
            last position only, so that there are no rows to read.
    """

    def __init__(self, model: nn.Module, processor: Any, *, geometry: str = "processor"):
        super().__init__(model, processor, geometry=geometry)
        if shared := model.config.get_text_config().num_kv_shared_layers:
            raise GroundingError(
                f"the last {shared} layers of this Gemma 4 share keys with earlier layers and skip the prompt, so that "
                "their attention to the image is not computed; use a Gemma 4 without shared layers (26B-A4B, 31B)"
            )

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The processor says the place (x, y) of each patch, and (-1, -1) for none."""
        pooled = int(self.model.config.vision_config.pooling_kernel_size)
        columns, rows = (inputs["image_position_ids"][sample].amax(dim=0) + 1).tolist()
        h, w = rows // pooled, columns // pooled
        if count != h * w:
            raise self.mismatch(h * w, count, f"a grid of {h} x {w}")
        return (View("image", self.grid(0, h, w), self.whole(prepared)),)
