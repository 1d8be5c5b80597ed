"""PaliGemma, PaliGemma 2: one square grid of the squashed image, in front of everything; no chat template."""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class PaliGemma(Family):
    """One view, "image", over the whole picture. A prompt is a task ("caption en", "answer en What is it?").

    All of the prompt attends to all of the prompt, the answer causally. Positions count from 1, which rotary
    attention, being relative, does not notice.
    """

    template: ClassVar[str] = "{image}{prompt}"
    answer_fill: ClassVar[dict[str, int]] = Family.answer_fill | {"token_type_ids": 1}

    def attends_both_ways(self, prompt_ids: Tensor) -> int:
        """All of it."""
        return len(prompt_ids)

    def accepts_any_aspect(self, image: object) -> bool:
        """Everything becomes one square."""
        return True

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """Row-major."""
        side = isqrt(int(self.processor.image_seq_length))
        if count != side * side:
            raise self.mismatch(side * side, count, f"a grid of {side} x {side}")
        return (View("image", self.grid(0, side, side), self.whole(prepared)),)
