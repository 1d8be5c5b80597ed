"""What is drawn of a grounded answer, in plain values: its words in pieces, and its objects with masks and maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class DrawnObject:
    """One object of an answer: every phrase that speaks of it, and one mask in one colour.

    Attributes:
        colour: hex colour.
        name: the words of the phrase whose mask and map are shown.
        phrases: indices into the grounding's phrases; the first is that phrase's.
        mask: bool [H, W] at the image's size.
        score: Segment Anything's estimate of the mask's IoU.
        point: prompt point (x, y) in pixels.
        values: float32 [h, w], the phrase's map.
    """

    colour: str
    name: str
    phrases: tuple[int, ...]
    mask: Bool[np.ndarray, "H W"]
    score: float
    point: tuple[float, float]
    values: Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class DrawnAnswer:
    """An answer as it is shown.

    Attributes:
        pieces: (text, place of the object that it names or None) in reading order; joined, the texts are the answer.
        objects: in the order of their first mention.
        box: (x0, y0, x1, y1) of the maps' grid in pixels of the image.
    """

    pieces: tuple[tuple[str, int | None], ...]
    objects: tuple[DrawnObject, ...]
    box: tuple[float, float, float, float]
