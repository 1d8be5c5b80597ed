"""Visual attention sinks: how the attention of an answer is spread over the cells, and how large hidden states get.

A cell is register-like where the mean map of an answer holds `TIMES` the even share or more, and no object lies there.

Source: figure 6 of the paper; Darcet et al. 2023, "Vision transformers need registers"; Kang et al. 2025, "See what you
are told: visual attention sink in large multimodal models".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from core.errors import GroundingError
from core.geometry import View

TIMES = 5.0  # the even share
COVERED = 0.05  # of a cell, from which on an object lies there


@dataclass(frozen=True)
class Concentration:
    """Where the visual attention of one answer rests, in its mean map over the output tokens.

    Attributes:
        visual: share of all attention that goes to visual tokens.
        top1, top5: share of the visual attention on the one and the five most attended cells.
        ratio: of the most attended cell to the median one.
        cell: the most attended one, 0-based along the k visual tokens.
        steady: share of the output tokens whose own map is brightest there.
        off_objects: whether no object lies there.
        registers: bool [k], the register-like cells.
        registered: share of the visual attention on them.
    """

    visual: float
    top1: float
    top5: float
    ratio: float
    cell: int
    steady: float
    off_objects: bool
    registers: Bool[Tensor, " k"]
    registered: float


def concentration(attention: Float[Tensor, "t k"], objects: Bool[Tensor, " k"]) -> Concentration:
    """How an answer's attention is spread over the visual tokens.

    Args:
        attention: the answer's reduced maps, without equation 3.
        objects: cells in which an object lies.

    Raises:
        GroundingError: the answer has no token, or nothing was looked at.
    """
    if attention.numel() == 0 or float(attention.sum()) <= 0:
        raise GroundingError(f"attention maps of shape {tuple(attention.shape)} hold no attention to be spread")
    mean = reduce(attention, "t k -> k", "mean")
    share = mean / mean.sum()
    ordered, order = share.sort(descending=True)
    registers = (share >= TIMES / len(share)) & ~objects
    tiny = torch.finfo(share.dtype).tiny
    return Concentration(
        visual=float(mean.sum()),
        top1=float(ordered[0]),
        top5=float(ordered[:5].sum()),
        ratio=float(ordered[0] / share.median().clamp(min=tiny)),
        cell=int(order[0]),
        steady=float((attention.argmax(-1) == order[0]).float().mean()),
        off_objects=not bool(objects[order[0]]),
        registers=registers,
        registered=float(share[registers].sum()),
    )


def object_cells(mask: Bool[np.ndarray, "H W"], view: View, k: int) -> Bool[Tensor, " k"]:
    """Visual tokens whose cell the mask covers by `COVERED` or more; cells beside the picture hold none."""
    h, w = view.index.shape
    ys, xs = np.nonzero(mask)
    rows, columns = _row_column(xs + 0.5, ys + 0.5, view)
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    counts = np.zeros((h, w))
    np.add.at(counts, (rows[inside], columns[inside]), 1)
    x0, y0, x1, y1 = view.box
    covered = torch.from_numpy(counts >= COVERED * (x1 - x0) * (y1 - y0) / (h * w))
    found = torch.zeros(k, dtype=torch.bool)
    found[view.index.flatten()] = covered.flatten()
    return found


def cell_at(point: tuple[float, float], view: View) -> int:
    """The visual token whose cell a point (x, y), in pixels of the original image, lies in.

    Raises:
        GroundingError: it lies beside the view.
    """
    row, column = (int(value) for value in _row_column(*point, view))
    h, w = view.index.shape
    if not (0 <= row < h and 0 <= column < w):
        raise GroundingError(f"the point {point} lies beside view {view.name!r}, whose box is {view.box}")
    return int(view.index[row, column])


def _row_column(x: Any, y: Any, view: View) -> tuple[Any, Any]:
    h, w = view.index.shape
    x0, y0, x1, y1 = view.box
    rows, columns = (np.asarray(y) - y0) / (y1 - y0) * h, (np.asarray(x) - x0) / (x1 - x0) * w
    return np.floor(rows).astype(int), np.floor(columns).astype(int)


def norm_ratios(hidden: Float[Tensor, "l s c"], columns: Tensor) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"]]:
    """Of each layer's hidden states: the largest norm among the visual tokens over their median (massive activations),
    and the norm of the sequence's first token over that median.

    Args:
        hidden: the embeddings, then every layer's output.
        columns: positions of the visual tokens along s.
    """
    norms = hidden.norm(dim=-1)
    visual = norms[:, columns]
    middle = visual.median(dim=-1).values
    return visual.amax(-1) / middle, norms[:, 0] / middle
