"""Figure 6 in small for models of the record: the mean map, and one phrase's map without and with equation 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import PALETTE, new_axes, plot_map_on_image


def plot_example(picture: Any, example: Mapping[str, Any], title: str = "") -> Figure:
    """Three panels: the answer's mean map, a phrase's map without equation 3, and with it, with their points.

    Args:
        picture: RGB.
        example: what `embedded.claims.measure.example_maps` returned.
        title: above the panels.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    panels = (
        ("mean", "mean map of the answer", None, None),
        ("raw", f'"{example["phrase"]}", without equation 3', "raw_point", None),
        ("normalised", f'"{example["phrase"]}", with equation 3', "point", 0.0),
    )
    for ax, (key, said, point, center) in zip(axes, panels, strict=True):
        marked = tuple(example[point]) if point else None
        plot_map_on_image(picture, np.array(example[key]), tuple(example["box"]), center=center, point=marked, ax=ax)
        ax.set_title(said, loc="left", fontsize=8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def plot_norms(norms: Mapping[str, list[float]], *, ax: Axes | None = None) -> Axes:
    """Largest hidden state of the visual tokens over their median, by layer, a line for each model.

    Args:
        norms: label to values, of the embeddings and then of each layer.
    """
    ax = new_axes(6, 3.2) if ax is None else ax
    for number, (said, values) in enumerate(norms.items()):
        ax.plot(range(len(values)), values, "o-", color=PALETTE[number % len(PALETTE)], label=said, markersize=4)
    ax.set(xlabel="layer (0: embeddings)", ylabel="largest / median norm", ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=7, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
