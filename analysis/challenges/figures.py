"""Figure 4: each challenge's picture with masks, its question, the grounded answer, and other systems' answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.conversation.drawn import DrawnAnswer
from analysis.conversation.figure import plot_coloured_text
from analysis.figures import new_axes, plot_overlay
from analysis.scoring.figures import plot_grouped_dots

WIDTH, ROW = 10.0, 2.3  # inches of the figure, and of one challenge


@dataclass(frozen=True)
class ShownChallenge:
    """One row of the figure.

    Attributes:
        title, question: of the challenge.
        picture: RGB.
        answer: as it is drawn.
        others: (label, text) of other systems.
        note: in words of the list.
    """

    title: str
    question: str
    picture: Any
    answer: DrawnAnswer
    others: tuple[tuple[str, str], ...] = ()
    note: str = ""


def plot_challenges(rows: Sequence[ShownChallenge], label: str = "attend-and-segment") -> Figure:
    """Figure 4: a row for each challenge.

    Args:
        rows: in their order.
        label: of our answers.
    """
    figure = plt.figure(figsize=(WIDTH, ROW * len(rows)))
    for number, row in enumerate(rows):
        top = 1 - number / len(rows)
        height = 1 / len(rows)
        picture = figure.add_axes((0.0, top - 0.9 * height, 0.26, 0.8 * height))
        objects = row.answer.objects
        plot_overlay(
            row.picture,
            [each.mask for each in objects],
            [each.colour for each in objects],
            points=[each.point for each in objects],
            ax=picture,
        )
        picture.set_anchor("NW")
        picture.set_title(row.title, fontsize=10, fontweight="bold", loc="left", pad=4)
        wide = 0.34 if row.others else 0.71
        text = figure.add_axes((0.28, top - 0.95 * height, wide, 0.9 * height))
        plot_coloured_text(row.answer, title=f"{row.question} → {label}", ax=text)
        if row.others:
            _plot_others(row.others, figure.add_axes((0.65, top - 0.95 * height, 0.35, 0.9 * height)))
        if row.note:
            picture.text(0, -0.03, fill(row.note, 40), transform=picture.transAxes, va="top", fontsize=8, color="#666")
    return figure


def _plot_others(others: Sequence[tuple[str, str]], ax: Axes) -> None:
    told = "\n\n".join(f"{label}:\n{fill(text, 46)}" for label, text in others)
    ax.text(0, 0.97, told, va="top", fontsize=8, color="#444", parse_math=False, clip_on=True)
    ax.axis("off")


def plot_challenge_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """PAcc, precision and recall of every challenge as dots with their intervals; ticks mark a random point's PAcc.

    Args:
        table: `analysis.challenges.scores.description_table`.
    """
    ax = new_axes(8.5, 3.2) if ax is None else ax
    ticks = ["PAcc\n(tick: random point)", "named categories:\nprecision", "recall"]
    places = plot_grouped_dots(table, ("PAcc", "precision", "recall"), label="challenge", ticks=ticks, ax=ax)
    for own, row in zip(places, table.to_dict("records"), strict=True):
        ax.plot([own[0]], [row["chance"]], "_", color="black", markersize=12, label=f"_{row['challenge']}: chance")
    return ax
