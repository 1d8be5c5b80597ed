"""What an explorer shows, for print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from analysis.explorer.gallery import gallery_maps
from analysis.explorer.told import Told
from analysis.figures import PALETTE, plot_map_on_image, plot_overlay, save_figure
from analysis.heads.figures import plot_head_maps
from core.attention import to_grid
from core.errors import GroundingError
from core.options import GroundOptions
from core.pipeline import Grounding, token_maps
from core.rle import decode_rle

if TYPE_CHECKING:
    from analysis.explorer.explorer import Explorer

SIGNED = ("sequence", "words", "prompt")  # normalisations after which a map has values below 0
MOST_WORDS = 12


def save_shown(explorer: Explorer, directory: str | Path, name: str | None = None) -> Figure:
    """Save what an explorer shows, see `Explorer.figure`."""
    told, view = explorer.told, explorer.view
    if view.place and not view.tokens:
        figure, said = plot_place(told, view.place, explorer.options()), "place"
    else:
        looks = [(each, explorer.selected(each)) for each in explorer.shown]
        figure, said = plot_looks(looks), looks[0][1].phrases[0].text
    name = name or "".join(sign if sign.isalnum() else "_" for sign in said)[:60]
    save_figure(figure, directory, name)
    plt.close(figure)
    if view.show_gallery and view.tokens and told.grounding.generation.attention_per_head is not None:
        maps = gallery_maps(told.grounding, sorted(view.tokens), explorer.options()).numpy()
        center = 0.0 if view.normalization in SIGNED else None
        ax = plot_head_maps(maps, heading=f"{said}: {told.model}", center=center)
        save_figure(ax, directory, f"{name}_heads")
        plt.close(ax.figure)
    return figure


def plot_looks(looks: Sequence[tuple[Told, Grounding]]) -> Figure:
    """The map and the masks of some words, a row for each answer.

    Args:
        looks: the answer, and its chosen tokens grounded as one phrase.
    """
    columns = 2 if any(found.masks[0] for _, found in looks) else 1
    height, width = looks[0][1].image_size
    size = (3.6 * columns, len(looks) * (3.6 * min(max(height / width, 0.4), 1.6) + 0.5))
    figure, axes = plt.subplots(len(looks), columns, figsize=size, squeeze=False, layout="constrained")
    for (left, *right), (told, found) in zip(axes, looks, strict=True):
        values = to_grid(found.maps, found.view)[0].numpy()
        center = 0.0 if found.options.normalization in SIGNED else None
        point = tuple(found.points[0].tolist())
        plot_map_on_image(told.image, values, found.view.box, center=center, point=point, ax=left)
        changes = ", ".join(f"{name} {value}" for name, value in found.options.changes().items() if name != "per_head")
        left.set_title(f"{found.phrases[0].text}: {told.model}{changes and ', '}{changes}", fontsize=8, loc="left")
        for ax in right:
            masks = [decode_rle(code).numpy() for code in found.masks[0]]
            colours = [PALETTE[3 + i] for i in range(len(masks))]
            plot_overlay(told.image, masks, colours, points=[point] if masks else [], ax=ax)
            told_scores = ", ".join(f"{score:.2f}" for score in found.scores[0].tolist())
            ax.set_title(f"masks, estimated IoU {told_scores}" if masks else "no mask", fontsize=9, loc="left")
    return figure


def plot_place(told: Told, place: Sequence[float], options: GroundOptions) -> Figure:
    """A place on the picture and how strongly each word looked there, as a share of its own brightest cell.

    Args:
        place: (x, y) in pixels of the picture.

    Raises:
        GroundingError: the place lies outside of what the model saw.
    """
    generation = told.grounding.generation
    view = generation.view(options.view)
    x0, y0, x1, y1 = view.box
    h, w = view.shape
    column, row = int((place[0] - x0) / (x1 - x0) * w // 1), int((place[1] - y0) / (y1 - y0) * h // 1)
    if not (0 <= row < h and 0 <= column < w):
        raise GroundingError(f"the place {tuple(place)} lies outside of the view {view.name!r}, {view.box} px")
    grids = to_grid(token_maps(generation, options=options), view)
    shares = (grids[:, row, column] / grids.amax((1, 2)).clamp(min=1e-30)).clamp(min=0).numpy()
    words = [generation.text[start:end].strip() for start, end in generation.token_spans.tolist()]
    order = [i for i in np.argsort(-shares, kind="stable") if any(c.isalnum() for c in words[i])][:MOST_WORDS]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    plot_overlay(told.image, [], [], ax=left)
    left.plot([place[0]], [place[1]], "o", color="white", markeredgecolor="black", markersize=7, label="place")
    right.barh(range(len(order)), [shares[i] for i in order], color=PALETTE[1], label="share of the brightest cell")
    right.set_yticks(range(len(order)), [f"{words[i]} ({i})" for i in order])
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="attention at this place, share of the word's brightest cell")
    right.spines[["top", "right"]].set_visible(False)
    return figure
