"""What a kernel adds to an explorer's page: masks of chosen words, maps of chosen heads, and those of all."""

from __future__ import annotations

from typing import Any

from analysis.explorer.data import KERNEL_OPTIONS, MAP_OPTIONS, shown_options
from analysis.explorer.gallery import gallery_maps, packed_gallery
from analysis.explorer.told import Told
from analysis.explorer.widget import ExplorerView
from core.options import GroundOptions


def follow(view: ExplorerView, told: Told, options: GroundOptions, *, segmenter: Any) -> None:
    """Compute what the page shows and does not know yet; each with the state that it is `for`, as the page names it.

    Args:
        view: the widget.
        told: the answer that it shows, with the rows of the options.
        options: how it is shown.
        segmenter: None for no masks.

    Raises:
        GroundingError: the answer does not hold what the options need.
    """
    chosen = shown_options(told.grounding.options)
    place = [view.answer, view.layers, view.heads]
    if place[1:] != [chosen["layers"], chosen["heads"]] and view.head_maps.get("for") != place:
        view.head_maps = {"for": place} | told.head_maps(options)
    tokens = sorted(view.tokens)
    if not tokens:
        return
    key = [view.answer, tokens, *(getattr(view, name) for name in (*MAP_OPTIONS, *KERNEL_OPTIONS))]
    if segmenter is not None and view.masks and view.mask.get("for") != key:
        view.mask = {"for": key, "codes": list(told.of_tokens(tokens, options, segmenter=segmenter).masks[0])}
    key = [view.answer, tokens, view.normalization, view.aggregation, view.view]
    has_heads = told.grounding.generation.attention_per_head is not None
    if view.show_gallery and has_heads and view.gallery.get("for") != key:
        view.gallery = {"for": key} | packed_gallery(gallery_maps(told.grounding, tokens, options))
