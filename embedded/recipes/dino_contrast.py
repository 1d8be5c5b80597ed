"""The contrast between objects: what the patches of an object say is the same in both views of it, and in no other's.

Source: NT-Xent, SimCLR (Chen et al. 2020), on features averaged over an object's cells, DetCon (Hénaff et al. 2021).
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from embedded.recipes.waves import plane_waves


def wave_positions(width: int, grid: int, *, amplitude: float) -> Float[Tensor, "k c"]:
    """Sines and cosines of the row and the column of each cell, to start position embeddings from.

    Source: fixed two-dimensional position embeddings of MoCo v3 (Chen, Xie and He 2021), here a start only.
    """
    rates = 10_000 ** (-torch.arange(width // 4) / (width // 4)) * torch.pi / 2
    return amplitude * plane_waves(grid, rates)


def encode_window(encoder, pixels: Float[Tensor, "b 3 s s"], row: int, column: int) -> Float[Tensor, "b k c"]:
    """Patch features of small pictures that stand at cell (row, column) of a `Dinov2Model`'s grid of positions."""
    embeddings = encoder.embeddings
    patches = embeddings.patch_embeddings(pixels)
    cells = int(patches.shape[1] ** 0.5)
    side = encoder.config.image_size // encoder.config.patch_size
    grid = torch.arange(side * side).view(side, side)[row : row + cells, column : column + cells].flatten()
    places = embeddings.position_embeddings[0]
    first = (embeddings.cls_token + places[:1]).expand(len(pixels), -1, -1)
    hidden = encoder.encoder(torch.cat([first, patches + places[1 + grid]], dim=1)).last_hidden_state
    return encoder.layernorm(hidden)[:, 1:]


def encode_mosaic(encoder, pixels: Float[Tensor, "b 3 s s"], order: Int[Tensor, " b"]) -> Float[Tensor, "b k c"]:
    """Patch features of small pictures that stand four to a picture, in a square, those at `order` beside each other.

    Args:
        order: a permutation; four places in turn make a picture.
    """
    whole = rearrange(pixels[order], "(b r c) d h w -> b d (r h) (c w)", r=2, c=2)
    features = encoder(whole).last_hidden_state[:, 1:]
    cells = int(features.shape[1] ** 0.5) // 2
    tiles = rearrange(features, "b (r h c w) d -> (b r c) (h w) d", r=2, c=2, h=cells, w=cells)
    return tiles[order.argsort()]


def pool(features: Float[Tensor, "b k c"], matte: Float[Tensor, "b 1 s s"]) -> Float[Tensor, "b c"]:
    """The mean over cells, each weighed by how much of the object it shows; over all where none shows any."""
    side = matte.shape[-1] // int(features.shape[1] ** 0.5)
    weights = F.avg_pool2d(matte, side).flatten(1) + 1e-3
    return (features * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)


def nt_xent(projected: Float[Tensor, "n c"], temperature: float) -> Float[Tensor, ""]:
    """How badly a view's partner, half the batch away, is told from all other views by cosine, in nats."""
    unit = F.normalize(projected.float(), dim=-1)
    scores = unit @ unit.T / temperature
    scores = scores.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return F.cross_entropy(scores, partner)
