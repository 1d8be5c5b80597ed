"""Gemma 3: one square grid of the squashed image; with pan-and-scan another for each strip of a long image."""

from __future__ import annotations

from math import isqrt
from typing import Any, ClassVar

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Gemma3(Family):
    """Views "base" (the whole image squashed to a square) and, with the geometry "pan-and-scan", "grid" (the strips of
    an image that is long enough; the default).
    """

    geometries: ClassVar[tuple[str, ...]] = (*Family.geometries, "pan-and-scan")

    @property
    def processor_options(self) -> dict[str, Any]:
        """Pan-and-scan where asked for, as the checkpoint's image processor sets it; transformers ignores it there."""
        if self.geometry != "pan-and-scan":
            return {}
        names = ("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate")
        settings = {name: getattr(self.processor.image_processor, name) for name in names}
        return {"do_pan_and_scan": True} | {name: value for name, value in settings.items() if value is not None}

    def accepts_any_aspect(self, image: object) -> bool:
        """Everything becomes a few squares."""
        return True

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The whole image comes first; then strips of a landscape from left to right, of a portrait downwards.

        The last strip is a few pixels shorter where the side does not divide; the view takes them as equal.
        """
        side, box = isqrt(int(self.processor.image_seq_length)), self.whole(prepared)
        square = side * side
        if count % square or not count:
            raise self.mismatch(square, count, f"a grid of {side} x {side}")
        base, strips = View("base", self.grid(0, side, side), box), count // square - 1
        if not strips:
            return (base,)
        height, width = prepared.size
        rows, columns = (1, strips) if width >= height else (strips, 1)
        return base, View("grid", self.tiles(square, rows, columns, side), box)
