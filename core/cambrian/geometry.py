"""What of a square grid is left when the padding is taken off, as Cambrian-1 counts it."""

from __future__ import annotations

import torch
from torch import Tensor


def padding(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(rows, columns) of padding at each end of a grid of side x side cells over a picture (H, W) padded to a square.

    What is left is up to one cell more or less than the picture: its outermost half cells may be cut off, too.

    Source: `unpad_image` of the published code.
    """
    height, width = size
    if width > height:
        return (side - int(height * (side / width))) // 2, 0
    return 0, (side - int(width * (side / height))) // 2


def kept_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h, w) of the cells that the language model sees of a picture (H, W)."""
    rows, columns = padding(size, side)
    return side - 2 * rows, side - 2 * columns


def kept(sizes: list[tuple[int, int]], side: int, device: torch.device) -> Tensor:
    """bool [b, side, side]: the cells of each picture (H, W) that are not padding."""
    mask = torch.zeros(len(sizes), side, side, dtype=torch.bool, device=device)
    for sample, size in enumerate(sizes):
        rows, columns = padding(size, side)
        mask[sample, rows : side - rows, columns : side - columns] = True
    return mask
