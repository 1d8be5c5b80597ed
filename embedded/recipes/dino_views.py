"""What student and teacher see of a batch of scenes: random crops and masks, drawn for the whole batch at once."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey value


def random_crops(
    unit: Float[Tensor, "b 3 H W"],
    views: int,
    *,
    side: int,
    area: tuple[float, float],
    generator: torch.Generator,
    stretch: float = 1.25,
    jitter: float = 0.3,
    grey: float = 0.2,
) -> Float[Tensor, "v b 3 s s"]:
    """Crops of every picture at random places, half of them mirrored, with other colours.

    Args:
        unit: colours in 0..1.
        views: crops of each picture.
        side: of the result, in pixels.
        area: smallest and largest share of the picture that a crop shows.
        generator: on the CPU, so that every device sees the same crops.
        stretch: the largest factor between a crop's sides.
        jitter: brightness, contrast and saturation change by at most this share; hue does not, for colours are words.
        grey: the share of crops without colour, so that colour alone does not tell two pictures apart.

    Returns:
        Float32, with ImageNet's normalisation.
    """
    number, pictures = views * len(unit), len(unit)
    aspect = torch.exp(uniform(number, -math.log(stretch), math.log(stretch), generator))
    shown = uniform(number, *area, generator)
    width, height = ((shown * ratio).sqrt().clamp(max=1.0) for ratio in (aspect, 1 / aspect))
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0] = width * (torch.rand(number, generator=generator) < 0.5).float().mul(2).sub(1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = uniform(number, -1.0, 1.0, generator) * (1 - width)
    theta[:, 1, 2] = uniform(number, -1.0, 1.0, generator) * (1 - height)
    factors = 1 + jitter * uniform(3 * number, -1.0, 1.0, generator).view(3, number, 1, 1, 1)
    factors[2] *= (torch.rand(number, generator=generator) >= grey).float().view(-1, 1, 1, 1)
    grid = F.affine_grid(theta.to(unit.device), [number, 3, side, side], align_corners=False)
    seen = sample_views(unit, grid, padding="reflection")
    return standardise(_recolour(seen, *factors.to(unit.device))).unflatten(0, (views, pictures))


def sample_views(
    unit: Float[Tensor, "b c H W"], grid: Float[Tensor, "n s s 2"], *, padding: str
) -> Float[Tensor, "n c s s"]:
    """What every picture shows at the places of its views, one batch after the other (n = views * b).

    Args:
        grid: x and y, where the picture is -1..1.
        padding: what is seen beside it, as `grid_sample` calls it.
    """
    side, views = grid.shape[1], len(grid) // len(unit)
    below = grid.unflatten(0, (views, -1)).transpose(0, 1).flatten(1, 2)  # a picture's views in one column
    seen = F.grid_sample(unit, below, padding_mode=padding, align_corners=False)
    return seen.unflatten(2, (views, side)).permute(2, 0, 1, 3, 4).flatten(0, 1)


def standardise(unit: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """ImageNet's normalisation of colours in 0..1, as `core.encoders.combined.branch` gives DINOv2 its pictures."""
    from core.encoders.normalisation import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(values, device=unit.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (unit - mean) / std


def random_masks(
    number: int, *, grid: int, share: tuple[float, float], generator: torch.Generator
) -> Bool[Tensor, "b k"]:
    """Which cells of a grid are hidden, in blobs of about two by two cells; true is hidden.

    Args:
        grid: cells a side; k = grid * grid.
        share: smallest and largest share of hidden cells; at least one cell is hidden and one shown.
    """
    coarse = torch.randn(number, 1, (grid + 1) // 2, (grid + 1) // 2, generator=generator)
    height = F.interpolate(coarse, size=(grid, grid), mode="bilinear", align_corners=False).flatten(1)
    height = height + 0.3 * torch.randn(number, grid * grid, generator=generator)
    hidden = (uniform(number, *share, generator) * grid * grid).round().long().clamp(1, grid * grid - 1)
    rank = height.argsort(dim=1, descending=True).argsort(dim=1)
    return rank < hidden[:, None]


def uniform(number: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Random numbers between two bounds."""
    return low + (high - low) * torch.rand(number, generator=generator)


def grey_values(unit: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1 H W"]:
    """How light colours in 0..1 are."""
    return (unit * torch.tensor(LUMA, device=unit.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _recolour(unit: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Each picture's brightness, contrast and saturation times a factor [b, 1, 1, 1]; colours stay in 0..1."""
    grey = grey_values(unit)
    unit = grey + saturation * (unit - grey)
    middle = grey.mean((-2, -1), keepdim=True)
    return (brightness * (middle + contrast * (unit - middle))).clamp(0, 1)
