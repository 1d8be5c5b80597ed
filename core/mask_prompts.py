"""A phrase's map as a prompt of a segmenter: a mask of logits, and the box around its bright pixels.

Source: the ablation of table 4 ("mask prompt"); temperature and threshold from the released code.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import GroundingError


def shares(maps: Float[Tensor, "p H W"], temperature: float | None) -> Float[Tensor, "p H W"]:
    """Maps brought to 0..1: divided by a temperature and clipped, or each stretched from its minimum to its maximum.

    Raises:
        GroundingError: a temperature that is not positive.
    """
    if temperature is not None:
        if temperature <= 0:
            raise GroundingError(f"the mask prompt's temperature must be positive or None, not {temperature}")
        return (maps / temperature).clamp(0, 1)
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp(min=torch.finfo(torch.float32).tiny)


def bright_boxes(shares: Float[Tensor, "p H W"], threshold: float) -> Float[Tensor, "p 4"]:
    """(x0, y0, x1, y1) around the pixels above the threshold, or around the brightest pixel; x1 and y1 as the
    released code has them.
    """
    boxes = []
    for share in shares:
        bright = share > threshold
        if not bright.any():
            bright = torch.zeros_like(bright)
            bright.view(-1)[share.argmax()] = True
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)


def mask_inputs(shares: Float[Tensor, "p H W"], size: tuple[int, int], side: int) -> Float[Tensor, "p 1 S S"]:
    """Maps as logits (inverse sigmoid), resized to `size` (bicubic), padded with 0 to the square of a mask prompt."""
    logits = torch.logit(shares, eps=1e-3)
    resized = torch.nn.functional.interpolate(logits[:, None], size, mode="bicubic", align_corners=False)
    return torch.nn.functional.pad(resized, (0, side - size[1], 0, side - size[0]))
