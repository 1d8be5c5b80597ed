"""Every single head against the mean over all (Figure 5 and Table 7 of the paper), from points, without a segmenter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from core.errors import GroundingError
from core.generation import Generation
from core.options import GroundOptions
from core.phrases import Phrase, find_phrases, phrase_at
from core.pipeline import Grounding, phrase_maps
from core.points import prompt_points

HEAD_POINTS = "head_points"  # their name among what is measured with a record


def choose_phrase(generation: Generation, nlp: Any, *, word: str = "", categories: Iterable[str] = ()) -> Phrase:
    """The words whose maps are shown: the first place of `word` in the answer, or the first noun that names a category.

    Args:
        generation: the answer.
        nlp: a spaCy pipeline.
        word: any words of the answer, upper or lower case; "" looks for a noun.
        categories: what counts as an object; where none is named, the first noun is taken.

    Raises:
        GroundingError: the answer lacks the word, or has no noun.
    """
    text = generation.text
    if word:
        found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE)
        phrase = phrase_at(text, generation.token_spans, found.span()) if found else None
        if phrase is None:
            raise GroundingError(f"the answer does not contain {word!r}; choose a word of it: {text!r}")
        return phrase
    phrases = find_phrases(text, generation.token_spans, nlp)
    if not phrases:
        raise GroundingError(f"the answer has no noun to show; choose a word of it: {text!r}")
    known = {name.lower() for name in categories}
    return next((phrase for phrase in phrases if phrase.root.lower() in known), phrases[0])


def phrase_head_maps(
    generation: Generation, phrase: Phrase, *, options: GroundOptions | str = "paper", **changes: Any
) -> Float[Tensor, "l n k"]:
    """Every head's map of a phrase, each head normalised over the answer by itself; options as in
    `core.attend_and_segment`, but for their selection of layers and heads.

    Raises:
        GroundingError: the generation has no per-head attention.

    Source: Figure 5. Equation 3 is linear, so the mean of these maps is the normalised mean map.
    """
    layers = layer_maps(generation, (phrase,), GroundOptions.of(options, **changes))
    return torch.stack([rearrange(maps, "1 n k -> n k") for maps in layers])


def head_points(grounding: Grounding) -> Float[Tensor, "p l n 2"]:
    """Where each head alone would point for each phrase, under the grounding's own options but for its selection of
    layers and heads: (x, y) in pixels of the original image.

    Raises:
        GroundingError: the generation has no per-head attention, or its points were taken after upsampling.
    """
    options, points = grounding.options, []
    if options.aggregation == "pixel_max":
        raise GroundingError(
            "single heads are compared by one map for each phrase; use another aggregation than 'pixel_max'"
        )
    for maps in layer_maps(grounding.generation, grounding.phrases, options):
        flat = rearrange(maps, "p n k -> (p n) k")
        found = prompt_points(flat, grounding.view, grounding.image_size, remove_corners=options.remove_corners)
        points.append(rearrange(found, "(p n) c -> p n c", n=maps.shape[1]))
    return torch.stack(points, dim=1)


def measure_head_points(grounding: Grounding) -> dict[str, Tensor]:
    """`head_points` as a `measure` of `core.run.ground_dataset`, which needs `per_head=True`.

    They are pixel centres, so the pixels' numbers are kept, in two bytes where those are enough.
    """
    small = max(grounding.image_size) <= torch.iinfo(torch.int16).max
    return {HEAD_POINTS: head_points(grounding).floor().to(torch.int16 if small else torch.int32)}


def measured_head_points(grounding: Grounding) -> Float[Tensor, "p l n 2"]:
    """The head points that were kept with a record, as `head_points` gave them.

    Raises:
        GroundingError: the record was made without them.
    """
    if HEAD_POINTS not in grounding.measured:
        raise GroundingError(
            "this record holds no points of single heads; make the records with "
            "ground_dataset(..., per_head=True, measure=measure_head_points) in a folder of their own"
        )
    return grounding.measured[HEAD_POINTS].to(torch.float32) + 0.5


def layer_maps(
    generation: Generation, phrases: Sequence[Phrase], options: GroundOptions
) -> Iterator[Float[Tensor, "p n k"]]:
    """Of one layer after another, every head's map of every phrase, each head normalised by itself.

    Raises:
        GroundingError: the generation has no per-head attention.
    """
    whole = replace(options, layers=None, heads=None)
    if generation.attention_per_head is None:
        raise GroundingError("this generation holds no per-head attention; call generate or replay with per_head=True")
    for layer in generation.attention_per_head.unbind(1):
        flat = rearrange(layer, "t n k -> t (n k)")
        single = replace(generation, attention=flat, attention_per_head=None, prompt_attention=None)
        yield rearrange(phrase_maps(single, phrases, options=whole), "p (n k) -> p n k", n=layer.shape[1])


def maps_reading(maps: np.ndarray) -> str:
    """One sentence on the maps [l, n, h, w] of one word: which layer looks at the image most, which head is focused."""
    mass = maps.sum(axis=(2, 3)).mean(axis=1)
    flat = rearrange(maps, "l n h w -> l n (h w)")
    focus = flat.max(axis=-1) / np.maximum(flat.sum(axis=-1), np.finfo(float).tiny)
    layer, head = np.unravel_index(int(focus.argmax()), focus.shape)
    most, least = int(mass.argmax()), int(mass.argmin())
    return (
        f"On average a head of layer {most} gives the image {100 * mass[most]:.1f} % of its attention for this word, "
        f"the most of all layers, and one of layer {least} {100 * mass[least]:.1f} %, the least; "
        f"layer {layer} head {head} is the most focused, with {100 * focus[layer, head]:.0f} % of that in one cell."
    )
