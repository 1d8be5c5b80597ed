"""How far apart two ways of computing the same thing may lie, by the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Attributes:
    same: relative difference of rows of one computation, of which one way rounds to the dtype.
    other: relative difference of rows where kernels or shapes differ, so that roundings grow from layer to layer.
    logits: difference of logits, as a share of their standard deviation; nearer ones are a floating-point tie.
    """

    same: float
    other: float
    logits: float


TOLERANCES = {
    torch.float64: Tolerance(1e-5, 1e-5, 1e-5),
    torch.float32: Tolerance(1e-4, 1e-3, 1e-2),
    torch.float16: Tolerance(1e-2, 5e-2, 5e-2),
    torch.bfloat16: Tolerance(5e-2, 0.25, 0.25),
}


def tolerance(dtype: torch.dtype) -> Tolerance:
    """Of a dtype; quantised models are taken as bfloat16."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])


def row_error(found: Tensor, expected: Tensor) -> float:
    """Largest relative difference of a row: sum of |found - expected| over the sum of expected, for rows [t, k]."""
    if not len(expected):
        return 0.0
    difference = (found.double() - expected.double()).abs().sum(-1)
    return float((difference / expected.double().sum(-1).clamp(min=1e-12)).max())
