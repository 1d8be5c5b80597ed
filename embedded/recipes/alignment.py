"""Alignment of a U-Net's features with those of an encoder that taught itself, while the U-Net learns to remove noise.

Source: REPA (Yu et al., Representation Alignment for Generation, ICLR 2025), equation 8: the mean cosine between the
encoder's features of the clean picture and what a projection makes of the features inside the denoiser. Differs: the
targets are whitened, since otherwise the few directions of colour and ground are nearly all of the cosine; the
projection is linear, so that what is aligned can be read from the features themselves; a picture counts by how much of
it is left in the noise.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def whiten(*features: Float[Tensor, "_ c _ _"], sample: int = 2_000) -> list[Float[Tensor, "_ c _ _"]]:
    """Features [n, c, h, w] of kinds of pictures, changed so that all their cells have no mean and unit covariance.

    Statistics are those of the first `sample` pictures of each kind, every cell counting alike; the result is float16.
    """
    rows = torch.cat([one[:sample].float().permute(0, 2, 3, 1).flatten(0, 2) for one in features])
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    matrix = vectors / (values.clamp(min=1e-4 * values.max())).sqrt()
    return [torch.cat([_apply(part, mean, matrix) for part in one.split(500)]) for one in features]


def _apply(features: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("nchw,cd->ndhw", features.float() - mean[:, None, None], matrix).half()


class Alignment(nn.Module):
    """A projection of an up block's output, and how far it is from targets.

    Args:
        unet: an `UNet2DConditionModel`, whose block is listened to from now on.
        up_block: which, from 1.
        width: of the targets.
    """

    def __init__(self, unet: Any, *, up_block: int, width: int) -> None:
        super().__init__()
        channels = list(reversed(unet.config.block_out_channels))[up_block - 1]
        self.projection = nn.Conv2d(channels, width, 1)
        self._seen: list[Tensor] = []
        unet.up_blocks[up_block - 1].register_forward_hook(self._listen)

    def _listen(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self._seen[:] = [output]

    def forward(self, targets: Float[Tensor, "b c h w"], weights: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """The weighted mean over pictures of minus the mean cosine of their cells, for what the U-Net saw last."""
        from core.encoders.frozen import to_grid_size

        projected = to_grid_size(self.projection(self._seen[0].float()), targets.shape[-2:])
        return -(weights * F.cosine_similarity(projected, targets, dim=1).mean((1, 2))).mean()
