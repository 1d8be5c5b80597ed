"""Where a grid of visual tokens lies on the original image: `View`, and maps resampled to its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from core.errors import GroundingError

MODES = ("bicubic", "bilinear", "nearest")
_CUBIC = -0.75  # the cubic convolution coefficient of torch.nn.functional.interpolate


@dataclass(frozen=True, eq=False)
class View:
    """One rectangular grid of visual tokens and the part of the image that it covers.

    Attributes:
        name: what the family calls the grid, e.g. "image", "base" or "grid".
        index: int64 [h, w]; the position of each cell along the k visual tokens.
        box: (x0, y0, x1, y1) in pixels of the original image. Cells are equal divisions of it. It sticks out of the
            image where the image was padded and misses its ends where the image was cropped.
        image: which of the prompt's images it belongs to, counted from 0.

    >>> import torch
    >>> from core import View
    >>> View("image", torch.arange(12).view(3, 4), (0.0, 0.0, 80.0, 60.0)).index.shape
    torch.Size([3, 4])
    """

    name: str
    index: Int64[Tensor, "h w"]
    box: tuple[float, float, float, float]
    image: int = 0

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box
        if not (x1 > x0 and y1 > y0 and all(math.isfinite(edge) for edge in self.box)):
            raise GroundingError(f"view {self.name!r} has an empty box {self.box}; give (x0, y0, x1, y1) with x1 > x0")
        if self.index.ndim != 2 or 0 in self.index.shape:
            raise GroundingError(f"view {self.name!r} needs an index of shape [h, w], got {list(self.index.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the grid."""
        h, w = self.index.shape
        return int(h), int(w)

    def cell(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Box (x0, y0, x1, y1) of one cell, in pixels of the original image."""
        h, w = self.shape
        x0, y0, x1, y1 = self.box
        width, height = (x1 - x0) / w, (y1 - y0) / h
        return x0 + column * width, y0 + row * height, x0 + (column + 1) * width, y0 + (row + 1) * height


def map_to_pixels(
    values: Float[Tensor, "*batch h w"], view: View, *, size: tuple[int, int], mode: str = "bicubic"
) -> Float[Tensor, "*batch H W"]:
    """Resample a map over a view's grid at the pixel centres of the original image.

    The same as upsampling the grid to its box (`align_corners=False`) and cropping the image's rectangle out, but
    exact for boxes with fractional edges. Pixels outside the box take the value of its border.

    Args:
        values: [..., h, w] with the view's h and w.
        view: the grid's place on the image.
        size: (H, W) of the original image in pixels.
        mode: "bicubic" (the paper's), "bilinear" or "nearest".

    Returns:
        float32 [..., H, W].

    Raises:
        GroundingError: unknown mode, or the map's shape is not the view's, or an empty size.

    Source: paper section 3.1 and the reference code: bicubic, `align_corners=False`.
    """
    if mode not in MODES:
        raise GroundingError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")
    if tuple(values.shape[-2:]) != view.shape:
        raise GroundingError(
            f"the map has shape {list(values.shape)}, but view {view.name!r} is a grid of {view.shape}; "
            "bring the k visual tokens to the grid with core.attention.to_grid first"
        )
    height, width = size
    if height < 1 or width < 1:
        raise GroundingError(f"size (H, W) must be positive, got {size}")
    x0, y0, x1, y1 = view.box
    rows = _resampler(view.shape[0], y0, y1, height, mode)
    columns = _resampler(view.shape[1], x0, x1, width, mode)
    values = values.detach().to("cpu", torch.float32)
    return einsum(einsum(values, columns, "... h w, W w -> ... h W"), rows, "... h W, H h -> ... H W").contiguous()


def _resampler(cells: int, start: float, end: float, pixels: int, mode: str) -> Tensor:
    """float32 [pixels, cells]: weights of the cells at each pixel centre; cell edges divide [start, end] equally."""
    position = cell_positions(cells, start, end, pixels)
    if mode == "nearest":
        taps, weights = (position + 0.5).floor()[:, None], torch.ones(pixels, 1, dtype=torch.float64)
    elif mode == "bilinear":
        low, fraction = position.floor(), position - position.floor()
        taps, weights = torch.stack([low, low + 1], 1), torch.stack([1 - fraction, fraction], 1)
    else:
        low, weights = cubic_weights(position)
        taps = low[:, None] + torch.arange(-1, 3)
    taps = taps.clamp(0, cells - 1).long()
    return torch.zeros(pixels, cells, dtype=torch.float64).scatter_add_(1, taps, weights).float()


def cell_positions(cells: int, start: float, end: float, pixels: int) -> Float64[Tensor, " pixels"]:
    """Where the pixel centres of an axis lie among cells that divide [start, end] equally: in cells, whose own centres
    are the integers from 0.
    """
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    return (centres - start) * (cells / (end - start)) - 0.5


def cubic_weights(position: Float64[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, "n 4"]]:
    """(the cell before each position, the weights of the cell before that one and of the next three)."""
    low = position.floor()
    return low, _cubic((position[:, None] - low[:, None] - torch.arange(-1, 3, dtype=torch.float64)).abs())


def _cubic(distance: Tensor) -> Tensor:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
