"""What a `core.masks.Segmenter` asks of a segmentation model, whatever classes it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Embedding = dict[str, Tensor]  # an encoded image: float32 tensors [1, ...] by name


class Backend(ABC):
    """A model that encodes an image once and answers points, boxes and masks on it; it keeps no image itself.

    Prompts are given in the model's input, a square of `side` pixels of which the image takes `input_size`, beginning
    at the upper left corner. They count its pixels: (0, 0) is the centre of the first one, and the prompt encoders add
    the half pixel.

    Attributes:
        stretches: whether the image fills the square (SAM 2) instead of keeping its ratio beside padding (SAM).
        model: all its weights.
        side: of the input, in pixels.
        mask_side: of a mask prompt, in values; None where a model takes none.
        precision: what the encoder computes in; embeddings and everything behind them are float32.
    """

    stretches: ClassVar[bool] = False
    model: nn.Module
    side: int
    mask_side: int | None
    precision: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in the model's input of an image of this size."""
        if self.stretches:
            return (self.side, self.side)
        scale = self.side / max(size)
        return (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))

    def mask_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in the mask prompt of an image of this size."""
        if self.stretches:
            return (self.mask_side, self.mask_side)
        height, width = size
        return (
            max(1, int(height / max(size) * self.mask_side)),
            max(1, int(width / max(size) * self.mask_side)),
        )

    def encode(self, pixels: np.ndarray) -> Embedding:
        """The embedding of an RGB image, uint8 [H, W, 3]."""
        half = self.precision != torch.float32
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.precision if half else None, enabled=half):
            found = self.embed(pixels)
        return {name: tensor.to(torch.float32) for name, tensor in found.items()}

    @abstractmethod
    def embed(self, pixels: np.ndarray) -> Embedding:
        """`encode`, in whatever precision is set."""

    @abstractmethod
    def decode(
        self,
        embedding: Embedding,
        *,
        points: Float[Tensor, "p n 2"] | None = None,
        boxes: Float[Tensor, "p 4"] | None = None,
        masks: Float[Tensor, "p 1 S S"] | None = None,
    ) -> tuple[Float[Tensor, "p m h w"], Float[Tensor, "p m"]]:
        """(logits of the masks over the whole square at the decoder's size, scores), small masks to large.

        Args:
            embedding: of the image.
            points: n positive points (x, y) for each prompt.
            boxes: (x0, y0, x1, y1).
            masks: logits.
        """

    @abstractmethod
    def masks(self, logits: Float[Tensor, "p m h w"], size: tuple[int, int]) -> Bool[Tensor, "p m H W"]:
        """The masks of some logits, at the size of the image."""
