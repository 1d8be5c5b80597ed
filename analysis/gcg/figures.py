"""Table 2 as pictures: metrics with intervals beside the paper's, both protocols, and single images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pycocotools import mask as rle

from analysis.figures import PALETTE, new_axes, plot_overlay
from analysis.gcg.dataset import GcgImage
from analysis.gcg.predictions import Prediction
from analysis.scoring.figures import plot_beside_paper, plot_grouped_dots

SHOWN = ("METEOR", "mIoU", "recall")


def plot_gcg(ours: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """METEOR, mIoU and mask recall of our rows with 95 % intervals above, the paper's rows in grey below, on Axes of
    their own: other models, other data.

    Args:
        ours: `analysis.gcg.table.gcg_table`; a metric that was not computed is left out.
        paper: `analysis.gcg.table.paper_rows`.
    """
    names = [name for name in SHOWN if ours[name].notna().any()]
    return plot_beside_paper(ours, paper, names, label="method", width=4.4 * len(names) + 1)


def plot_protocols(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """GLaMM's recall beside recall, precision, F1 and mIoU under optimal assignments: a dot with its interval for every
    system, in percent.

    Args:
        frame: `analysis.gcg.table.optimal_table`.
    """
    names = ("recall, GLaMM", "recall", "precision", "F1", "mIoU")
    ax = new_axes(8.5, 3.4) if ax is None else ax
    ticks = ["recall\n(GLaMM)", *(f"{name}\n(optimal)" for name in names[1:])]
    plot_grouped_dots(frame, names, label="method", ticks=ticks, ax=ax)
    return ax


def plot_example(picture: Any, image: GcgImage, said: dict[str, Prediction], *, most: int = 6) -> Figure:
    """One picture with its true phrases and masks, then with each system's.

    Args:
        picture: RGB, of the masks' size.
        image: the truth.
        said: prediction of each system by its label.
        most: masks shown of each.
    """
    panels = {"annotated": (image.labels, image.masks)} | {
        label: (found.phrases, found.masks) for label, found in said.items()
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), layout="constrained", squeeze=False)
    for ax, (label, (phrases, masks)) in zip(axes[0], panels.items(), strict=True):
        _panel(picture, phrases[:most], masks[:most], ax)
        ax.set_title(label, loc="left", fontsize=9)
    return figure


def _panel(picture: Any, phrases: Sequence[str], masks: Sequence[dict[str, Any]], ax: Axes) -> None:
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(masks))]
    plot_overlay(picture, [rle.decode(code).astype(bool) for code in masks], colours, ax=ax)
    for number, (phrase, colour) in enumerate(zip(phrases, colours, strict=False)):
        ax.annotate(
            phrase,
            (0, 0),
            xycoords="axes fraction",
            xytext=(2, -12 * (number + 1)),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            fontweight="bold",
            annotation_clip=False,
        )
