"""The published DiffLMM projector's own way from diffusion and CLIP features to LLM tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ReleasedHead(nn.Module):
    """The published projector up to its positional encoding: V_SD and V_CLIP -> LLM tokens [b, h, w, c_L].

    LayerNorm, 1x1 convolution to c_L / 4 and GELU on V_SD; CLIP's features beside it; a two-layer MLP.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.released_width
        channels = config.unet_channels[config.up_block - 1]
        self.sd_norm = nn.LayerNorm(channels)
        self.sd_linear = nn.Linear(channels, width // 4)
        self.linear_1 = nn.Linear(config.concatenated_size, width)
        self.linear_2 = nn.Linear(width, width)
        self.act = nn.GELU()

    def forward(
        self, diffusion: Float[Tensor, "b h w c"], clip: Float[Tensor, "b h w d"] | None
    ) -> Float[Tensor, "b h w e"]:
        """`clip` is not read where the encoder does not concatenate it."""
        features = self.act(self.sd_linear(self.sd_norm(diffusion)))
        if self.linear_1.in_features > features.shape[-1]:
            features = torch.cat([features, clip.to(features.dtype)], dim=-1)
        return self.linear_2(self.act(self.linear_1(features)))
