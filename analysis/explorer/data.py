"""A grounded answer as the explorer shows it: compact, in plain JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from analysis.figures import PALETTE, picture_uri
from core.attention import AGGREGATIONS, NORMALIZATIONS
from core.errors import GroundingError
from core.generation import ROWS
from core.masks import MASK_CHOICES
from core.options import PRESETS, SAM_PROMPTS, GroundOptions
from core.pipeline import Grounding, token_maps

LONGEST = 1200  # pixels of the picture on its long side; maps and points stay in those of the original
QUALITY = 88
CHOICES = {
    "normalization": NORMALIZATIONS,
    "aggregation": AGGREGATIONS,
    "row": ROWS,
    "sam_prompt": SAM_PROMPTS,
    "mask_choice": tuple(MASK_CHOICES),
}


MAP_OPTIONS = ("normalization", "aggregation", "view", "remove_corners", "layers", "heads")
KERNEL_OPTIONS = ("row", "sam_prompt", "mask_choice")  # these need the model or the segmenter


def explorer_data(
    grounding: Grounding,
    image: Image.Image,
    *,
    prompt: str = "",
    title: str = "",
    galleries: list[dict[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """What the explorer needs of one answer, as JSON values.

    Maps are kept as 16-bit shares of each token's highest value, over all visual tokens; positions in the text count
    UTF-16 units, as JavaScript does. An answer of 100 tokens of LLaVA-1.5 takes some 0.2 MB beside its picture.

    Args:
        grounding: of a record or fresh; with its maps.
        image: the picture that it is of, upright.
        prompt: what was asked.
        title: of the answer in a list; by default the prompt.
        galleries: each phrase's maps by layer and head, of `analysis.explorer.gallery.phrase_galleries`.

    Raises:
        GroundingError: the picture is of another size, or the record was kept without maps.
    """
    generation = grounding.generation
    if (image.height, image.width) != tuple(grounding.image_size):
        raise GroundingError(
            f"the picture is {image.height} x {image.width} (H x W), and the answer is of one of "
            f"{grounding.image_size[0]} x {grounding.image_size[1]}"
        )
    if generation.attention.shape[1] == 0:
        raise GroundingError("this record was kept without maps; make it again with keep_maps=True to explore it")
    options = shown_options(grounding.options)
    heads = generation.attention_per_head
    if grounding.options.selects_heads and heads is None:
        options |= {"layers": [], "heads": []}
    places = utf16_places(generation.text)
    baseline = generation.prompt_attention
    return {
        "title": title or prompt or "answer",
        "prompt": prompt,
        "model": str(generation.model.get("name_or_path", "")),
        "segmenter": grounding.segmenter or "",
        "text": generation.text,
        "tokens": [[places[start], places[end]] for start, end in generation.token_spans.tolist()],
        "size": [image.height, image.width],
        "picture": picture_uri(small_picture(image), kind="jpeg", quality=QUALITY),
        "views": [
            {
                "name": view.name,
                "h": view.shape[0],
                "w": view.shape[1],
                "index": view.index.flatten().tolist(),
                "box": list(view.box),
            }
            for view in generation.views
        ],
        **packed_maps(raw_maps(grounding)),
        "prompt_map": None if baseline is None else packed_maps(baseline[None]),
        "phrases": [
            {
                "span": [places[each] for each in phrase.span],
                "tokens": list(phrase.tokens),
                "colour": PALETTE[number % len(PALETTE)],
                "point": [round(each, 2) for each in grounding.points[number].tolist()],
                "masks": list(grounding.masks[number]),
            }
            for number, phrase in enumerate(grounding.phrases)
        ],
        "chosen": options,
        "note": ", ".join(f"{name} {value}" for name, value in grounding.options.changes().items()),
        "layers": 0 if heads is None else heads.shape[1],
        "heads": 0 if heads is None else heads.shape[2],
        "galleries": galleries,
    }


def raw_maps(grounding: Grounding) -> Float[Tensor, "t k"]:
    """Each token's map before equation 3, of the heads that were chosen, where the record has them, else of all."""
    generation, options = grounding.generation, grounding.options
    if generation.attention_per_head is None:
        return generation.attention
    return token_maps(generation, options=options, normalization="none")


def shown_options(options: GroundOptions) -> dict[str, Any]:
    """The options that the explorer can change, as it writes them: "" is the last view, no index means all."""
    shown = {name: getattr(options, name) for name in (*CHOICES, "remove_corners")}
    return shown | {
        "view": options.view or "",
        "layers": list(options.layers or ()),
        "heads": list(options.heads or ()),
    }


def known_options() -> dict[str, Any]:
    """The values that each option can take, the paper's, and the options by name: those that make a map, and those that
    need a kernel.
    """
    return {
        "choices": {name: list(values) for name, values in CHOICES.items()},
        "paper": shown_options(PRESETS["paper"]),
        "maps": list(MAP_OPTIONS),
        "kernel": list(KERNEL_OPTIONS),
    }


def packed_maps(maps: Float[Tensor, "t k"]) -> dict[str, Any]:
    """Maps as base64 of 16-bit shares (little-endian) of each one's highest value, and those values."""
    values = maps.numpy()
    highest = values.max(axis=1, initial=0.0)
    shares = values / np.where(highest > 0, highest, 1)[:, None]
    return {
        "maps": base64.b64encode(np.round(65535 * shares.clip(0, 1)).astype("<u2").tobytes()).decode(),
        "k": values.shape[1],
        "highest": [float(f"{value:.8g}") for value in highest],
    }


def utf16_places(text: str) -> list[int]:
    """For each character of a text, and for its end, how many UTF-16 units stand before it."""
    places = [0]
    for character in text:
        places.append(places[-1] + (2 if ord(character) > 0xFFFF else 1))
    return places


def small_picture(image: Image.Image) -> Image.Image:
    """A picture in RGB, at most `LONGEST` pixels long."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST, LONGEST))
    return small
