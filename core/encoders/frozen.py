"""What all encoders of this package share: one image in, frozen parts, one grid of features out."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from core.errors import GroundingError

RESIZES = ("bicubic", "bilinear")


class FrozenEncoder(PreTrainedModel):
    """Base of the encoders: whatever `frozen_parts` names stays frozen and in eval mode, also after `train()`.

    The configuration has image_size, patch_size (pixels of a cell), image_mean and image_std (how `pixel_values` were
    normalised) and resize.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionalEncoding):
            init.normal_(module.weight, std=module.std)

    def frozen_parts(self) -> list[nn.Module]:
        """The sub-modules that are never trained."""
        raise TypeError(f"{type(self).__name__} does not say which of its parts are frozen; override frozen_parts")

    def get_input_embeddings(self) -> None:
        """None: pixels have no embedding table."""
        return None

    def train(self, mode: bool = True) -> FrozenEncoder:
        """As in torch, but the frozen parts stay in eval mode and take no gradient.

        Loading a checkpoint makes every parameter trainable and ends with `eval()`, so this is also where the parts
        are frozen again.
        """
        super().train(mode)
        for part in self.frozen_parts():
            part.train(False)
            part.requires_grad_(False)
        return self

    def encode_frozen(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Everything that does not depend on what learns, each [b, ...]: worth computing once for many epochs.

        Args:
            pixel_values: [b, 3, H, W], normalised with the configuration's image_mean and image_std.

        Raises:
            GroundingError: another shape, or smaller than a cell.
        """
        raise TypeError(f"{type(self).__name__} does not say what of it is frozen; override encode_frozen")

    def from_frozen(self, frozen: dict[str, Tensor]) -> BaseModelOutputWithPooling:
        """The encoder's output from what `encode_frozen` gave; `forward` is one after the other."""
        raise TypeError(f"{type(self).__name__} does not say how it goes on; override from_frozen")

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **unused: Any) -> BaseModelOutputWithPooling:
        """Features as `hidden_states[-1]` and `last_hidden_state`, [b, k, c].

        Args:
            pixel_values: [b, 3, H, W], normalised with the configuration's image_mean and image_std.
            unused: the options that LLaVA passes to any tower.

        Raises:
            GroundingError: another shape, or smaller than a cell.
        """
        return self.from_frozen(self.encode_frozen(pixel_values))

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(h, w) of the features of a picture: whole cells only.

        Raises:
            GroundingError: not [b, 3, H, W], or smaller than one cell.
        """
        cell = self.config.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or min(pixel_values.shape[2:]) < cell:
            raise GroundingError(
                f"pixel_values have shape [b, 3, H, W] with H and W of at least one cell of {cell} pixels, got "
                f"{list(pixel_values.shape)}; let the model's own processor make them"
            )
        return pixel_values.shape[2] // cell, pixel_values.shape[3] // cell

    def unit_pixels(self, pixel_values: Tensor) -> Float[Tensor, "b 3 H W"]:
        """float32 in 0..1, cut to whole cells: what the processor's normalisation started from."""
        h, w = self.grid(pixel_values)
        cell = self.config.patch_size
        whole = pixel_values[:, :, : h * cell, : w * cell].float()
        return whole * _channels(self.config.image_std, whole) + _channels(self.config.image_mean, whole)

    def branch_pixels(
        self, unit: Float[Tensor, "b 3 H W"], *, size: tuple[int, int], mean: list | tuple, std: list | tuple
    ) -> Float[Tensor, "b 3 H2 W2"]:
        """The picture at a branch's own size (H, W) and normalisation, in the model's dtype.

        Bicubic with antialiasing, as CLIP's processor resizes, and clipped to 0..1; "bilinear" without, as the
        released DiffLMM does.
        """
        if tuple(unit.shape[-2:]) != size:
            if self.config.resize == "bicubic":
                unit = interpolate(unit, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
            else:
                unit = interpolate(unit, size=size, mode="bilinear", align_corners=False)
        return ((unit - _channels(mean, unit)) / _channels(std, unit)).to(self.dtype)


class PositionalEncoding(nn.Module):
    """A learnable vector per cell, added to the features; for another grid it is resampled (bicubic)."""

    def __init__(self, h: int, w: int, width: int, *, std: float):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(h, w, width).normal_(std=std))

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        weight = self.weight
        if features.shape[1:3] != weight.shape[:2]:
            size = tuple(features.shape[1:3])
            moved = weight.permute(2, 0, 1)[None].float()
            weight = interpolate(moved, size=size, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        return features + weight.to(features.dtype)


def to_grid_size(features: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Resampled to a grid of `size`: area means where it shrinks, bilinear where it grows; unchanged if equal."""
    if tuple(features.shape[-2:]) == size:
        return features
    if features.shape[-2] >= size[0] and features.shape[-1] >= size[1]:
        return interpolate(features, size=size, mode="area")
    return interpolate(features, size=size, mode="bilinear", align_corners=False)


def as_tokens(grid: Float[Tensor, "b h w c"]) -> BaseModelOutputWithPooling:
    """The output that LLaVA reads: `hidden_states[-1]` is [b, k, c] in row-major order, without a class token."""
    tokens = grid.flatten(1, 2)
    return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,))


def check_picture(config) -> None:
    """Refuses sizes and normalisations that cannot be meant.

    Raises:
        GroundingError: an image that is not a whole number of cells, a wrong number of channels, an unknown resize.
    """
    if config.patch_size <= 0 or config.image_size < config.patch_size or config.image_size % config.patch_size:
        raise GroundingError(
            f"image_size {config.image_size} is not a whole number of cells of patch_size {config.patch_size}"
        )
    if len(config.image_mean) != 3 or len(config.image_std) != 3:
        raise GroundingError(
            f"image_mean and image_std have one value per colour channel, got {config.image_mean}, {config.image_std}"
        )
    if config.resize not in RESIZES:
        raise GroundingError(f"unknown resize {config.resize!r}; use one of {', '.join(RESIZES)}")


def _channels(values: list | tuple, like: Tensor) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
