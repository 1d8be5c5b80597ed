"""Fixed sines and cosines of the row and the column of each cell of a square grid."""

from __future__ import annotations

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor


def plane_waves(side: int, rates: Float[Tensor, " q"]) -> Float[Tensor, "k c"]:
    """Values in -1..1 for each cell, row by row (k = side * side).

    Args:
        side: cells a side.
        rates: radians a cell.

    Returns:
        c = 4 q: sines and cosines of the row at every rate, then those of the column.

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners", appendix A.1.
    """
    phases = torch.arange(side)[:, None] * rates
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    rows, columns = repeat(waves, "h c -> (h w) c", w=side), repeat(waves, "w c -> (h w) c", h=side)
    return torch.cat([rows, columns], dim=1)
