"""Maps of every layer and head, as the explorer's gallery draws them: 8-bit, each in its own scale."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from core.attention import aggregate, normalize, to_grid
from core.errors import GroundingError
from core.options import GroundOptions
from core.pipeline import Grounding

BYTES_IN_PAGE = 6_000_000  # of all galleries of one answer in a page, before base64


def not_kept() -> GroundingError:
    """The error for an answer without the maps of single heads."""
    return GroundingError("the maps of single heads were not kept; ask again with per_head=True")


def gallery_maps(grounding: Grounding, tokens: Sequence[int], options: GroundOptions) -> Float[Tensor, "l n h w"]:
    """What every head looks at for some tokens: normalised head by head, aggregated, on the view's grid.

    What the prompt looked at is known of all heads together only; "prompt" is equation 3 here.

    Args:
        grounding: with the maps of every head.
        tokens: indices of output tokens.
        options: normalisation, aggregation and view.

    Raises:
        GroundingError: the record has no maps of single heads.
    """
    generation = grounding.generation
    heads = generation.attention_per_head
    if heads is None:
        raise not_kept()
    how = "sequence" if options.normalization == "prompt" else options.normalization
    written = generation.token_spans[:, 1] > generation.token_spans[:, 0]
    flat = normalize(rearrange(heads, "t l n k -> t (l n k)"), how, written=written)
    values = aggregate(flat, list(tokens), options.aggregation)
    layers, count, k = heads.shape[1:]
    return to_grid(values.view(layers, count, k), generation.view(options.view))


def packed_gallery(maps: Float[Tensor, "l n h w"], *, cells: int | None = None) -> dict[str, Any]:
    """Maps of all heads as JSON values.

    Args:
        maps: of some tokens.
        cells: at most so many cells a map; larger ones are averaged in squares.

    Returns:
        `layers`, `heads`, `h`, `w`, `maps` (base64 of uint8 [l, n, h, w], shares of each map's highest value; what lies
        below 0 is 0), `highest` (l * n values).
    """
    small = _within(rearrange(maps, "l n h w -> (l n) h w"), cells)
    highest = small.amax(dim=(1, 2)).clamp(min=0)
    shares = (small / highest.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]).clamp(0, 1)
    return {
        "layers": maps.shape[0],
        "heads": maps.shape[1],
        "h": small.shape[1],
        "w": small.shape[2],
        "maps": base64.b64encode(np.round(255 * shares.numpy()).astype(np.uint8).tobytes()).decode(),
        "highest": [float(f"{value:.5g}") for value in highest.tolist()],
    }


def phrase_galleries(grounding: Grounding, *, limit: int = BYTES_IN_PAGE) -> list[dict[str, Any] | None]:
    """The gallery of every phrase of an answer, with the record's options, as fine as fits into `limit` bytes.

    Raises:
        GroundingError: the record has no maps of single heads.
    """
    heads = grounding.generation.attention_per_head
    if heads is None:
        raise not_kept()
    cells = limit // max(1, len(grounding.phrases) * heads.shape[1] * heads.shape[2])
    options = grounding.options
    return [packed_gallery(gallery_maps(grounding, each.tokens, options), cells=cells) for each in grounding.phrases]


def _within(maps: Tensor, cells: int | None) -> Tensor:
    """Maps [m, h, w] averaged in squares until they have at most so many cells; never below one."""
    h, w = maps.shape[1:]
    side = 1
    while cells is not None and math.ceil(h / side) * math.ceil(w / side) > max(cells, 1):
        side += 1
    if side == 1:
        return maps
    return torch.nn.functional.adaptive_avg_pool2d(maps[None], (math.ceil(h / side), math.ceil(w / side)))[0]
