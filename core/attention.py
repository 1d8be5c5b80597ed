"""Attention maps as numbers: reduce over heads, normalise over the answer, aggregate over a phrase, fold into a grid.

Every function is pure and works on tensors that a `Generation` carries: `attention [t, k]` and `attention_per_head
[t, l, n, k]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from core.errors import GroundingError
from core.geometry import View

NORMALIZATIONS = ("sequence", "none", "words", "ratio", "prompt")
AGGREGATIONS = ("mean", "max", "first", "pixel_max")


def mean_over_heads(attention: Float[Tensor, "t l n k"]) -> Float[Tensor, "t k"]:
    """Mean over all layers and heads.

    Source: section 3.1 of the paper ("we average over the layers and heads").
    """
    return reduce(attention, "t l n k -> t k", "mean")


def select_heads(
    attention: Float[Tensor, "t l n k"],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Float[Tensor, "t k"]:
    """Mean over the chosen layers and the chosen heads of each.

    Args:
        attention: per-head maps.
        layers, heads: 0-based indices, negative ones count from the end; None keeps all.

    Raises:
        GroundingError: an index does not exist, or a selection is empty.

    Source: table 7 and figure 5 (one head of one layer); the released code of October 2024 keeps head -2 of every
        layer.
    """
    chosen = attention[:, _indices("layer", layers, attention.shape[1])]
    return mean_over_heads(chosen[:, :, _indices("head", heads, attention.shape[2])])


def normalize(
    attention: Float[Tensor, "t k"],
    how: str = "sequence",
    *,
    written: Bool[Tensor, " t"] | None = None,
    baseline: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "t k"]:
    """Take from every token's map what it shares with the others, so that cells which attract attention at every step
    (register-like artefacts) vanish.

    Args:
        attention: the maps of the whole answer.
        how: "sequence" subtracts the mean over the answer (the paper's); "none" leaves the maps as they are. Ours, for
            comparison: "words" subtracts the mean over the tokens that wrote something, "ratio" divides by the mean
            over the answer, "prompt" subtracts the mean map of the prompt's own words, which no answer has touched.
        written: tokens that wrote a character; needed for "words", where an answer without any keeps its mean.
        baseline: the map of the prompt, `Generation.prompt_attention`; needed for "prompt".

    Returns:
        After "sequence" the maps sum to 0 over `t`; after "ratio" they have mean 1 over `t` in every cell that was
        looked at at all, and 0 elsewhere.

    Raises:
        GroundingError: unknown `how`, or what it needs is not given.

    Source: equation 3.
    """
    _check_choice("normalization", how, NORMALIZATIONS)
    if how == "none" or len(attention) == 0:
        return attention
    if how == "prompt":
        if baseline is None:
            raise GroundingError(
                "normalization 'prompt' needs the map of the prompt's words behind the image, and there is none for "
                "these maps: generate the answer again where the record is older, and take the mean over all heads"
            )
        return attention - baseline
    if how == "words" and written is None:
        raise GroundingError("normalization 'words' needs to know which tokens wrote something; give written=")
    counted = attention[written] if how == "words" and written.any() else attention
    mean = reduce(counted, "t k -> 1 k", "mean")
    if how == "ratio":
        return attention / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return attention - mean


def aggregate(attention: Float[Tensor, "t k"], tokens: Sequence[int], how: str = "mean") -> Float[Tensor, " k"]:
    """The map of a phrase from the maps of its tokens: their mean, their maximum per cell, or the first token's.

    "pixel_max" is the maximum per cell here; the point is then taken from the upsampled maps, see
    `core.points.prompt_points`.

    Raises:
        GroundingError: no tokens, a token outside the answer, or unknown `how`.

    Source: section 3.1 (mean); the released code of 2025 takes the maximum.
    """
    _check_choice("aggregation", how, AGGREGATIONS)
    if len(tokens) == 0:
        raise GroundingError("a phrase without tokens has no attention map; give at least one token index")
    rows = attention[_indices("token", sorted(tokens), len(attention), negative=False)]
    if how == "first":
        return rows[0]
    return reduce(rows, "t k -> k", "max" if how == "pixel_max" else how)


def to_grid(attention: Float[Tensor, "*b k"], view: View) -> Float[Tensor, "*b h w"]:
    """The cells of one view, in its rows and columns; slots outside the view (thumbnail, newline column) are left out.

    Raises:
        GroundingError: the view points outside the `k` visual tokens.

    >>> import torch
    >>> from core import View, to_grid
    >>> to_grid(torch.rand(5, 12), View("image", torch.arange(12).view(3, 4), (0.0, 0.0, 80.0, 60.0))).shape
    torch.Size([5, 3, 4])
    """
    k = attention.shape[-1]
    if view.index.numel() and not 0 <= int(view.index.min()) <= int(view.index.max()) < k:
        raise GroundingError(
            f"view {view.name!r} reads visual tokens {int(view.index.min())}..{int(view.index.max())}, "
            f"but the map has {k}; use a view of the same generation"
        )
    return attention[..., view.index]


def remove_corners(grid: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Set the four corner cells of each map to the map's minimum, so that they never hold its peak.

    Source: the option of the same purpose in the released code, where the minimum is taken over all maps of an image;
    the peaks are the same.
    """
    cleaned = grid.clone()
    lowest = reduce(grid, "... h w -> ...", "min")
    for row in (0, -1):
        for column in (0, -1):
            cleaned[..., row, column] = lowest
    return cleaned


def _indices(what: str, chosen: Sequence[int] | None, size: int, *, negative: bool = True) -> list[int]:
    if chosen is None:
        return list(range(size))
    lowest = -size if negative else 0
    outside = [i for i in chosen if not lowest <= i < size]
    if outside or len(chosen) == 0:
        raise GroundingError(f"{what} selection {list(chosen)} must name at least one of 0..{size - 1}")
    return [i % size for i in chosen]


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise GroundingError(f"{what} {value!r} is not known; choose one of {', '.join(known)}")
