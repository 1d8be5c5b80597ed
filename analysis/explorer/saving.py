"""What an explorer shows, saved as figures that can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from analysis.drawings import keep_figure
from analysis.explorer.figure import Look, plot_looks, plot_place
from analysis.explorer.gallery import gallery_maps
from analysis.explorer.told import Told
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
        words, shares = words_at(told, view.place, explorer.options())
        drawn = keep_figure(directory, name or "place", plot_place, told.image, tuple(view.place), words, shares)
        return _closed(drawn)
    looks = [look_of(each, explorer.selected(each)) for each in explorer.shown]
    said = told.phrase(view.tokens).text
    name = name or "".join(sign if sign.isalnum() else "_" for sign in said)[:60]
    drawn = keep_figure(directory, name, plot_looks, looks)
    if view.show_gallery and told.grounding.generation.attention_per_head is not None:
        maps = gallery_maps(told.grounding, sorted(view.tokens), explorer.options())
        options = {"heading": f"{said}: {told.model}", "center": _center(view.normalization)}
        _closed(keep_figure(directory, f"{name}_heads", plot_head_maps, maps, **options).figure)
    return _closed(drawn)


def look_of(told: Told, found: Grounding) -> Look:
    """An answer's chosen tokens, grounded as one phrase, as the figure takes them."""
    changes = [f"{name} {value}" for name, value in found.options.changes().items() if name != "per_head"]
    return Look(
        caption=", ".join([f"{found.phrases[0].text}: {told.model}", *changes]),
        image=told.image,
        values=to_grid(found.maps, found.view)[0].numpy(),
        box=found.view.box,
        point=tuple(found.points[0].tolist()),
        masks=tuple(decode_rle(code).numpy() for code in found.masks[0]),
        scores=tuple(found.scores[0].tolist()),
        center=_center(found.options.normalization),
    )


def words_at(told: Told, place: Sequence[float], options: GroundOptions) -> tuple[list[str], np.ndarray]:
    """The words that looked most at a place, the strongest first, and their attention there as a share of each one's
    brightest cell.

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
    return [f"{words[i]} ({i})" for i in order], shares[order]


def _center(normalization: str) -> float | None:
    return 0.0 if normalization in SIGNED else None


def _closed(figure: Figure) -> Figure:
    """A figure that notebooks show once, where it is returned."""
    plt.close(figure)
    return figure
