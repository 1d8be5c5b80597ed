"""The spatial vision aggregator: every cell of a grid asks all encoders what they see inside it.

The modules carry the names of the published weights.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

HEADS = 16  # of every sampler, fixed in the published code


class VisionSampler(nn.Module):
    """Queries that attend to the features of all encoders inside their own cell.

    Args:
        query_width: channels of the queries.
        width: channels of context and features.
        windows: for each encoder, its features along one side of a cell.
        depth: number of layers.

    Source: Cambrian-1, section 3.1 ("spatial vision aggregator"); `VisionTokenSampler` of the published code.
    """

    def __init__(self, *, query_width: int, width: int, windows: list[int], depth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            SamplerLayer(query_width=query_width, width=width, windows=windows) for _ in range(depth)
        )

    def forward(
        self,
        queries: Float[Tensor, "cells 1 q"],
        context: Float[Tensor, "cells 1 c"],
        features: list[Tensor],
        masks: list[Tensor],
    ) -> Float[Tensor, "cells 1 q"]:
        """`features`: of each encoder [cells, n, c]; `masks`: bool [cells, n], False at padding."""
        for layer in self.layers:
            queries = layer(queries, context, features, masks)
        return queries


class SamplerLayer(nn.Module):
    """One cross-attention over all encoders, around which the queries are kept."""

    def __init__(self, *, query_width: int, width: int, windows: list[int]):
        super().__init__()
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(query_width + width, width, bias=False)
        self.cross_attn = JointAttention(width, len(windows))
        self.norm = nn.LayerNorm(width)
        self.proj_out = Mlp(width, query_width)
        for number, window in enumerate(windows):
            if window > 1:  # one feature per cell has no place in it
                self.register_parameter(f"pos_embed_{number}", nn.Parameter(torch.zeros(window**2, width)))

    def forward(self, queries: Tensor, context: Tensor, features: list[Tensor], masks: list[Tensor]) -> Tensor:
        asked = self.proj_in(torch.cat([queries, self.proj_context(context)], -1))
        placed = [self._placed(number, each) for number, each in enumerate(features)]
        found = asked + self.cross_attn(asked, placed, torch.cat(masks, -1))
        return queries + self.proj_out(self.norm(found))

    def _placed(self, number: int, features: Tensor) -> Tensor:
        where = getattr(self, f"pos_embed_{number}", None)
        return features if where is None else features + where


class JointAttention(nn.Module):
    """Attention whose keys and values come from several encoders, each with its own projections."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.q_proj, self.o_proj = _projection(width), nn.Linear(width, width, bias=False)
        for number in range(count):
            self.add_module(f"k_proj_{number}", _projection(width))
            self.add_module(f"v_proj_{number}", _projection(width))

    def forward(
        self, queries: Float[Tensor, "cells 1 c"], features: list[Tensor], mask: Bool[Tensor, "cells n"]
    ) -> Float[Tensor, "cells 1 c"]:
        keys = torch.cat([self.get_submodule(f"k_proj_{i}")(each) for i, each in enumerate(features)], 1)
        values = torch.cat([self.get_submodule(f"v_proj_{i}")(each) for i, each in enumerate(features)], 1)
        q, k, v = (rearrange(x, "b s (n d) -> b n s d", n=HEADS) for x in (self.q_proj(queries), keys, values))
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.o_proj(rearrange(found, "b n s d -> b s (n d)"))


class Mlp(nn.Module):
    """Two layers without biases."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, width, bias=False), nn.Linear(width, out, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(hidden)))


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))


def windows_of(grid: Float[Tensor, "b k c"], side: int) -> Float[Tensor, "b h w n c"]:
    """A square grid of features, cut into the windows that side x side cells cover."""
    full = round(grid.shape[1] ** 0.5)
    return rearrange(grid, "b (h r w s) c -> b h w (r s) c", h=side, w=side, r=full // side)


def windows_mask(mask: Bool[Tensor, "b full full2"], side: int) -> Bool[Tensor, "b h w n"]:
    """The same of a mask; a window that is all padding is taken whole.

    Source: the published code, whose attention would otherwise have nothing to attend to.
    """
    cut = rearrange(mask, "b (h r) (w s) -> b h w (r s)", h=side, w=side)
    return cut | ~cut.any(-1, keepdim=True)


def resampled(grid: Float[Tensor, "b h w c"], side: int) -> Float[Tensor, "b side side c"]:
    """Bilinear, without antialiasing, in float32 at least; unchanged where the size is right."""
    if tuple(grid.shape[1:3]) == (side, side):
        return grid
    exact = rearrange(grid, "b h w c -> b c h w").to(torch.promote_types(grid.dtype, torch.float32))
    moved = interpolate(exact, size=(side, side), mode="bilinear", align_corners=False)
    return rearrange(moved, "b c h w -> b h w c").to(grid.dtype)
