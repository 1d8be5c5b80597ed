"""From maps to point prompts in pixels of the original image.

Frame: continuous coordinates, pixel (row i, column j) covers [j, j+1) x [i, i+1) and its centre is (j + 0.5, i +
0.5). Segment Anything counts pixels instead (its prompt encoder adds the half pixel); `core.masks` converts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from core.attention import remove_corners as without_corners
from core.attention import to_grid
from core.errors import GroundingError
from core.geometry import View, map_to_pixels
from core.peaks import certain_peaks

PIXELS_AT_ONCE = 2**24  # float32 values of upsampled maps held at a time: 64 MB


def peak(values: Float[Tensor, "*b H W"]) -> Float[Tensor, "*b 2"]:
    """Centre (x, y) of the pixel with the highest value, in pixels; the first in row order where several are equal.

    Raises:
        GroundingError: an empty map or values that are not finite.
    """
    width = values.shape[-1]
    if width * values.shape[-2] == 0:
        raise GroundingError(f"a map of {values.shape[-2]} x {width} pixels has no peak")
    if not torch.isfinite(values).all():
        raise GroundingError(
            "the map holds values that are not finite, so it has no peak; check the model's dtype (use float32)"
        )
    best = rearrange(values, "... H W -> ... (H W)").argmax(-1)
    return torch.stack([best % width + 0.5, torch.div(best, width, rounding_mode="floor") + 0.5], -1).to(torch.float32)


def visible_pixels(view: View, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the image whose pixel centres lie inside the view's box.

    Raises:
        GroundingError: the box and the image do not meet.
    """
    x0, y0, x1, y1 = view.box
    rows = slice(max(0, math.ceil(y0 - 0.5)), min(size[0], math.floor(y1 - 0.5) + 1))
    columns = slice(max(0, math.ceil(x0 - 0.5)), min(size[1], math.floor(x1 - 0.5) + 1))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise GroundingError(
            f"view {view.name!r} covers {view.box}, which holds no pixel of an image of {size[0]} x {size[1]}"
        )
    return rows, columns


def prompt_points(
    maps: Float[Tensor, "p k"],
    view: View,
    size: tuple[int, int],
    *,
    remove_corners: bool = False,
    mode: str = "bicubic",
    groups: Sequence[int] | None = None,
) -> Float[Tensor, "g 2"]:
    """One point per map: the highest value of the map resampled at the original resolution.

    Only pixels inside the view's box can win; where a processor crops, the model never saw the rest. Maps are resampled
    where their peaks can lie (`core.peaks`), and whole where that does not decide: ties, flat maps, other modes.

    Args:
        maps: aggregated maps over the visual tokens.
        view: the grid to read.
        size: (H, W) of the original image.
        remove_corners: ignore the four corner cells.
        mode: interpolation of `map_to_pixels`.
        groups: how many consecutive maps share one point, that of their pixel-wise maximum; None gives each its own.

    Returns:
        Pixel centres (x, y) in pixels of the original image, one for each map or group.

    Source: section 3.1 and the released code (bicubic, then the crop of the image from the padded square); groups are
        its referring segmentation's.
    """
    grids = to_grid(maps, view)
    if remove_corners:
        grids = without_corners(grids)
    sizes = [1] * len(grids) if groups is None else list(groups)
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    seen = visible_pixels(view, size)
    if mode == "bicubic":
        rows, columns = certain_peaks(grids, owners, len(sizes), view, seen).unbind(1)
    else:
        rows = columns = torch.full((len(sizes),), -1)
    points = torch.stack([columns, rows], 1).to(torch.float32) + 0.5
    left = rows < 0
    if left.any():
        rest = None if groups is None else [size for size, open in zip(sizes, left.tolist(), strict=True) if open]
        points[left] = whole_map_points(grids[left[owners]], view, size, mode=mode, groups=rest)
    return points


def whole_map_points(
    grids: Float[Tensor, "p h w"],
    view: View,
    size: tuple[int, int],
    *,
    mode: str = "bicubic",
    groups: Sequence[int] | None = None,
) -> Float[Tensor, "g 2"]:
    """What `prompt_points` gives for maps [h, w] of the view's cells, by upsampling them whole, a few at a time."""
    rows, columns = visible_pixels(view, size)
    at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))

    def seen(part: Tensor) -> Tensor:
        return map_to_pixels(part, view, size=size, mode=mode)[..., rows, columns]

    if groups is None:
        points = [peak(seen(part)) for part in grids.split(at_once) if len(part)]
    else:
        points = [peak(_highest(group, seen, at_once))[None] for group in grids.split(list(groups))]
    corner = torch.tensor([columns.start, rows.start], dtype=torch.float32)
    return torch.cat([*points, torch.empty(0, 2)]) + corner


def _highest(group: Tensor, seen: Callable[[Tensor], Tensor], at_once: int) -> Tensor:
    """The pixel-wise maximum of some maps, upsampled a few at a time."""
    return reduce(torch.maximum, (seen(part).amax(0) for part in group.split(at_once)))
