"""What the rest of the package asks of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from core.errors import GroundingError
from core.geometry import View

GEOMETRIES = ("processor", "pad", "pan-and-scan")  # of all families; each says which it knows
MAX_ASPECT = 200  # beyond this, processors make images of gigabytes or refuse


@dataclass(frozen=True)
class Prepared:
    """An image as it goes to the processor: `offset` (x, y) is where the original's corner lies on it, in pixels."""

    image: Image.Image
    size: tuple[int, int]  # (H, W) of the original
    offset: tuple[int, int] = (0, 0)


class Family(ABC):
    """One adapter per model family: the placeholder, the views, and how inputs grow by an answer.

    Args:
        model: the transformers model.
        processor: its processor.
        geometry: "processor" shows the model what its processor shows it; "pad" pads an image that the processor
            would crop, so that nothing of it is lost. A family may know more, see `geometries`.
    """

    geometries: ClassVar[tuple[str, ...]] = ("processor", "pad")
    image_block: ClassVar[str] = "{placeholder}"  # what stands for the image in a prompt
    template: ClassVar[str | None] = None  # prompt template of checkpoints that come without a chat template
    answer_fill: ClassVar[dict[str, int]] = {  # per-token inputs and their value at answer tokens
        "attention_mask": 1,
        "token_type_ids": 0,
        "mm_token_type_ids": 0,
    }
    needs_position_ids: ClassVar[bool] = True  # give a padded replay the positions that `generate` would

    def __init__(self, model: nn.Module, processor: Any, *, geometry: str = "processor"):
        if geometry not in self.geometries:
            raise GroundingError(f"unknown geometry {geometry!r}; use one of {', '.join(self.geometries)}")
        self.model, self.processor, self.geometry = model, processor, geometry

    @property
    def image_token_id(self) -> int:
        """The id that stands at every visual position."""
        return self.model.config.image_token_id

    @property
    def placeholder(self) -> str:
        """The text of the image token, once per image in a prompt; the processor expands it."""
        return self.processor.image_token

    @property
    def processor_options(self) -> dict[str, Any]:
        """Keyword arguments for each call of the processor."""
        return {}

    @property
    def text_model(self) -> nn.Module:
        """The decoder whose attention is captured."""
        return self.model.model.language_model

    def prepare(self, image: Image.Image) -> Prepared:
        """The image for the processor.

        Raises:
            GroundingError: the image is too narrow for the family's processor.
        """
        width, height = image.size
        if max(width, height) > MAX_ASPECT * min(width, height) and not self.accepts_any_aspect(image):
            raise GroundingError(
                f"the image of {width} x {height} pixels is longer than {MAX_ASPECT} times its width, which this "
                "model's processor cannot take; crop or pad it first"
            )
        return Prepared(image, (height, width))

    def accepts_any_aspect(self, image: Image.Image) -> bool:
        """Whether the processor's memory stays bounded however long the image is."""
        return False

    @abstractmethod
    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The grids of one sample, the default one last.

        Args:
            inputs: what the processor made of the whole batch.
            sample: its place in the batch.
            count: number k of its visual positions.
            prepared: its image.

        Raises:
            GroundingError: the grids do not add up to k tokens.
        """

    def among_others(self, prepared: Prepared) -> tuple[int, tuple[View, ...]] | None:
        """How many visual tokens one of several images of a prompt has, and its views; None where it is shown to the
        model as it would be alone.
        """
        return None

    def attends_both_ways(self, prompt_ids: Tensor) -> int:
        """Up to which position of a prompt int64 [s] the words behind the picture attend to later ones, too; 0 where
        they are causal. (What the visual tokens themselves attend to does not matter here.)
        """
        return 0

    @staticmethod
    def grid(start: int, h: int, w: int, row_length: int | None = None) -> Tensor:
        """int64 [h, w]: positions of a row-major grid whose rows lie `row_length` (default w) positions apart."""
        row_length = w if row_length is None else row_length
        return start + torch.arange(h)[:, None] * row_length + torch.arange(w)[None, :]

    @staticmethod
    def tiles(start: int, rows: int, columns: int, side: int) -> Tensor:
        """int64 [rows * side, columns * side]: positions of square tiles that lie one after the other, stitched."""
        index = start + torch.arange(rows * columns * side * side)
        return rearrange(index, "(r c h w) -> (r h) (c w)", r=rows, c=columns, h=side, w=side)

    @staticmethod
    def whole(prepared: Prepared) -> tuple[float, float, float, float]:
        """The box of the whole original image."""
        height, width = prepared.size
        return 0.0, 0.0, float(width), float(height)

    def mismatch(self, expected: int, count: int, what: str) -> GroundingError:
        """The error for a number of visual tokens that the geometry does not explain."""
        return GroundingError(
            f"{what} would be {expected} visual tokens, but the prompt holds {count}; the processor's settings do not "
            "belong to this model"
        )
