"""What can be said of a head without any annotation: how much of its attention the image gets, how scattered it is, and
whether it agrees with the others. Kept with a record at capture time, when every head's maps are at hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from scipy.ndimage import label
from torch import Tensor

from analysis.heads.points import layer_maps
from core.attention import to_grid
from core.errors import GroundingError
from core.pipeline import Grounding

MASS, ENTROPY, AGREEMENT = "head_mass", "head_entropy", "head_agreement"
STATISTICS = (MASS, ENTROPY, AGREEMENT)
HEAD_MAPS = "head_maps"
MAPS_LIMIT = 2**16
NEIGHBOURS = np.ones((3, 3), dtype=int)  # cells that touch at a corner belong together


def measure_head_statistics(grounding: Grounding) -> dict[str, Tensor]:
    """Three statistics of every head's map of every phrase, float32 [p, l, n] each.

    `head_mass` and `head_entropy` are of the attention as the model paid it: the share that all visual tokens get of
    it, and `spatial_entropy` of its map. `head_agreement` is of the maps that points are taken from, so after equation
    3: the correlation over the view's cells with the mean map of all other heads.

    Raises:
        GroundingError: the generation has no per-head attention.

    Source: the first two are the criteria of "Your Large Vision-Language Model Only Needs A Few Attention Heads For
        Visual Grounding" (arXiv 2503.06287), per phrase instead of per question.
    """
    generation, phrases, view = grounding.generation, grounding.phrases, grounding.view
    raw = list(layer_maps(generation, phrases, replace(grounding.options, normalization="none")))
    own = torch.stack(list(layer_maps(generation, phrases, grounding.options)), dim=1)
    cells = rearrange(to_grid(own, view), "p l n h w -> p (l n) (h w)")
    layers, heads = own.shape[1:3]
    mass = torch.stack([maps.sum(-1) for maps in raw], dim=1)
    entropy = torch.stack([_entropies(to_grid(maps, view)) for maps in raw], dim=1)
    agreement = rearrange(agreement_with_others(cells), "p (l n) -> p l n", l=layers, n=heads)
    return {MASS: mass, ENTROPY: entropy, AGREEMENT: agreement}


def measure_head_maps(grounding: Grounding) -> dict[str, Tensor]:
    """Every head's map of every phrase, float32 [p, l, n, k], as points are taken from it."""
    return {HEAD_MAPS: torch.stack(list(layer_maps(grounding.generation, grounding.phrases, grounding.options)), dim=1)}


def measured(grounding: Grounding, name: str) -> Tensor:
    """What was kept with a record under one of the names of this module.

    Raises:
        GroundingError: the record was made without it.
    """
    if name not in grounding.measured:
        raise GroundingError(
            f"this record holds no {name}; make the records with analysis.captured.capture_run, "
            "unless per_head is false or, for maps, the model has too many heads (see its head_maps)"
        )
    return grounding.measured[name]


def spatial_entropy(grid: Float[np.ndarray, "h w"], *, threshold: float = 0.001) -> float:
    """How scattered a map is: 0 where what lies above its mean is one region, more with every further one.

    The map's mean is taken from it and what is left below 0 dropped; cells above the threshold that touch, corners
    included, are one region; the regions' shares of the whole are the distribution whose entropy this is. Where there
    is no region it is the logarithm of the number of cells (ours; the released code has infinity without anything above
    the mean, and 0, the best there is, where all of it is under the threshold).

    Args:
        grid: attention, as a share of all of a token's attention.
        threshold: that a cell must exceed, in the same unit.

    Returns:
        In nats. Shares are of all that lies above the mean, cells under the threshold included, so they need not sum
        to 1.

    Source: arXiv 2503.06287 and its released code.
    """
    above = np.maximum(grid - grid.mean(), 0)
    regions, number = label(above > threshold, structure=NEIGHBOURS)
    if number == 0:
        return float(np.log(grid.size))
    shares = np.bincount(regions.ravel(), weights=above.ravel(), minlength=number + 1)[1:] / above.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # no negative zero


def agreement_with_others(maps: Float[Tensor, "p m c"]) -> Float[Tensor, "p m"]:
    """Correlation over the cells of each head's map with the mean of the other heads' maps; 0 of a map without any
    contrast, and of a single head.
    """
    others = (maps.sum(1, keepdim=True) - maps) / max(1, maps.shape[1] - 1)
    first, second = (each - each.mean(-1, keepdim=True) for each in (maps, others))
    size = first.norm(dim=-1) * second.norm(dim=-1)
    product = (first * second).sum(-1)
    return torch.where(size > 0, product / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)


def _entropies(grids: Float[Tensor, "p n h w"]) -> Float[Tensor, "p n"]:
    flat = rearrange(grids.to(torch.float32), "p n h w -> (p n) h w").numpy()
    values = torch.tensor([spatial_entropy(grid) for grid in flat], dtype=torch.float32)
    return rearrange(values, "(p n) -> p n", n=grids.shape[1])
