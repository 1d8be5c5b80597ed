"""A grounded answer as the explorer's page reads it: compact, in plain JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from PIL import Image

from analysis.figures import PALETTE, picture_uri
from core.errors import GroundingError
from core.options import PRESETS
from core.pipeline import Grounding

LONGEST = 1200  # pixels of the picture on its long side; maps and points stay in those of the original
QUALITY = 88


def explorer_data(grounding: Grounding, image: Image.Image, *, prompt: str = "", title: str = "") -> dict[str, Any]:
    """What the page needs of one answer, as JSON values.

    Maps are kept as 16-bit shares of each token's highest value, over all visual tokens; positions in the text count
    UTF-16 units, as JavaScript does. An answer of 100 tokens of LLaVA-1.5 takes some 0.2 MB beside its picture.

    Args:
        grounding: of a record or fresh; with its maps.
        image: the picture that it is of, upright.
        prompt: what was asked.
        title: of the answer in a list; by default the prompt.

    Raises:
        GroundingError: the picture is of another size, or the record was kept without maps.
    """
    generation, view = grounding.generation, grounding.view
    if (image.height, image.width) != tuple(grounding.image_size):
        raise GroundingError(
            f"the picture is {image.height} x {image.width} (H x W), and the answer is of one of "
            f"{grounding.image_size[0]} x {grounding.image_size[1]}"
        )
    attention = generation.attention.numpy()
    if attention.shape[1] == 0:
        raise GroundingError("this record was kept without maps; make it again with keep_maps=True to explore it")
    places = utf16_places(generation.text)
    highest = attention.max(axis=1, initial=0.0)
    shares = attention / np.where(highest > 0, highest, 1)[:, None]
    return {
        "title": title or prompt or "answer",
        "prompt": prompt,
        "model": str(generation.model.get("name_or_path", "")),
        "text": generation.text,
        "tokens": [[places[start], places[end]] for start, end in generation.token_spans.tolist()],
        "size": [image.height, image.width],
        "picture": picture_uri(small_picture(image), kind="jpeg", quality=QUALITY),
        "grid": {"h": view.shape[0], "w": view.shape[1], "index": view.index.flatten().tolist(), "box": list(view.box)},
        "maps": base64.b64encode(np.round(65535 * shares.clip(0, 1)).astype("<u2").tobytes()).decode(),
        "k": attention.shape[1],
        "highest": [float(f"{value:.8g}") for value in highest],
        "phrases": [
            {
                "span": [places[each] for each in phrase.span],
                "tokens": list(phrase.tokens),
                "colour": PALETTE[number % len(PALETTE)],
                "mask": grounding.masks[number][-1] if grounding.masks[number] else None,
            }
            for number, phrase in enumerate(grounding.phrases)
        ],
        "chosen": {name: getattr(grounding.options, name) for name in ("normalization", "aggregation")},
        "paper": {name: getattr(PRESETS["paper"], name) for name in ("normalization", "aggregation")},
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
