"""What an explorer shows, for print: plain values in, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from analysis.figures import PALETTE, plot_map_on_image, plot_overlay


@dataclass(frozen=True)
class Look:
    """Where one answer's chosen words looked.

    Attributes:
        caption: the words, the model and what differs from the paper's options.
        image: RGB picture.
        values: float32 [h, w], the words' map.
        box: (x0, y0, x1, y1) of its grid in pixels of the picture.
        point: prompt point (x, y) in pixels.
        masks: bool [H, W] each.
        scores: the segmenter's estimates of the masks' IoU.
        center: 0 for maps with values below 0; None for raw attention.
    """

    caption: str
    image: Any
    values: Float[np.ndarray, "h w"]
    box: tuple[float, float, float, float]
    point: tuple[float, float]
    masks: tuple[Bool[np.ndarray, "H W"], ...]
    scores: tuple[float, ...]
    center: float | None


def plot_looks(looks: Sequence[Look]) -> Figure:
    """The map and the masks of some words, a row for each answer."""
    columns = 2 if any(len(look.masks) for look in looks) else 1
    height, width = np.asarray(looks[0].image).shape[:2]
    size = (3.6 * columns, len(looks) * (3.6 * min(max(height / width, 0.4), 1.6) + 0.5))
    figure, axes = plt.subplots(len(looks), columns, figsize=size, squeeze=False, layout="constrained")
    for (left, *right), look in zip(axes, looks, strict=True):
        point = tuple(look.point)
        plot_map_on_image(look.image, look.values, tuple(look.box), center=look.center, point=point, ax=left)
        left.set_title(look.caption, fontsize=8, loc="left")
        for ax in right:
            colours = [PALETTE[3 + i] for i in range(len(look.masks))]
            plot_overlay(look.image, look.masks, colours, points=[point] if len(look.masks) else [], ax=ax)
            told = ", ".join(f"{score:.2f}" for score in look.scores)
            ax.set_title(f"masks, estimated IoU {told}" if told else "no mask", fontsize=8, loc="left")
    return figure


def plot_place(image: Any, place: tuple[float, float], words: Sequence[str], shares: Float[np.ndarray, " m"]) -> Figure:
    """A place on the picture, and how strongly words looked there.

    Args:
        image: RGB picture.
        place: (x, y) in pixels.
        words: those that looked there most, the strongest first.
        shares: of each, its attention there as a share of its own brightest cell.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    plot_overlay(image, [], [], ax=left)
    left.plot([place[0]], [place[1]], "o", color="white", markeredgecolor="black", markersize=7, label="place")
    right.barh(range(len(words)), shares, color=PALETTE[1], label="share of the brightest cell")
    right.set_yticks(range(len(words)), list(words))
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="attention at this place, share of the word's brightest cell")
    right.spines[["top", "right"]].set_visible(False)
    return figure
