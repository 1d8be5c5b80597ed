"""A grounded answer as a figure for print: the image with its masks, the answer with its coloured phrases, the maps."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from analysis.conversation.drawn import DrawnAnswer
from analysis.figures import new_axes, plot_map_on_image, plot_overlay, shared_norm, tint

POINTS = 8.5  # font size of the answer
PITCH = 0.602 * POINTS / 72  # inches; DejaVu Sans Mono's characters are 0.602 of the font size wide
LINE = 1.65 * POINTS / 72  # inches from line to line


def conversation_figure(
    image: Image.Image, answer: DrawnAnswer, prompt: str, *, maps: bool = True, width: float = 9.5
) -> Figure:
    """One grounded answer: image and text side by side, the objects' attention maps beneath.

    Args:
        image: the upright RGB picture of the answer.
        answer: from `analysis.conversation.objects.drawn_answer`, which decides what is shown.
        prompt: the question that was asked; the title of the text.
        maps: draw the attention maps beneath.
        width: inches.

    Source: Figures 1 and 7.
    """
    objects = answer.objects
    tall = image.height / image.width
    picture_width = min(0.40 * width, 0.36 * width / tall)
    top = max(picture_width * tall, LINE * (_lines(answer, 0.97 * width - picture_width) + 3))
    per_row = max(6, round(6 * tall))
    shown = objects if maps else ()
    strip = -(-len(shown) // per_row) * (width / per_row * tall + 0.3)
    figure = plt.figure(figsize=(width, top + strip + 0.2))
    height = figure.get_figheight()
    picture = picture_width * tall / height
    ax = figure.add_axes((0, 1 - picture, picture_width / width, picture))
    plot_overlay(
        image, [o.mask for o in objects], [o.colour for o in objects], points=[o.point for o in objects], ax=ax
    )
    left = picture_width / width + 0.03
    text = figure.add_axes((left, 1 - top / height, 1 - left, top / height))
    plot_coloured_text(answer, title=prompt, ax=text)
    for position, axes in enumerate(_strip_axes(figure, len(shown), per_row, tall, strip)):
        _plot_object_map(image, answer, position, axes)
    return figure


def plot_coloured_text(answer: DrawnAnswer, *, title: str = "", ax: Axes | None = None) -> Axes:
    """The answer as wrapped text, each object's phrases on its colour; the Axes' size decides where lines break."""
    ax = new_axes(6, 3) if ax is None else ax
    box = ax.get_position()
    wide, tall = box.width * ax.figure.get_figwidth(), box.height * ax.figure.get_figheight()
    style = {"family": "monospace", "fontsize": POINTS, "parse_math": False}
    heading = fill(title, int(wide / PITCH)) if title else ""
    ax.text(0, -0.4, heading, va="top", color="#666", style="italic", **style)
    first_row = heading.count("\n") + 2.0 if heading else 0.4
    for row, column, words, position in _wrapped(answer, wide)[0]:
        colour = "none" if position is None else tint(answer.objects[position].colour, 0.5)
        patch = {"facecolor": colour, "edgecolor": "none", "pad": 0.7}
        ax.text(column, row + first_row, words, va="baseline", bbox=patch, **style)
    ax.set(xlim=(0, wide / PITCH), ylim=(tall / LINE - 0.6, -0.6))
    ax.axis("off")
    return ax


def _wrapped(answer: DrawnAnswer, wide: float) -> tuple[list[tuple[int, int, str, int | None]], int]:
    """(row, column, words, object) of every run of words on one line, and the number of lines."""
    limit = int(wide / PITCH) - 1
    runs: list[tuple[int, int, str, int | None]] = []
    row = column = 0
    for text, position in answer.pieces:
        text = "".join(each if each.isprintable() or each == "\n" else "·" for each in text)
        for part in text.replace("\n", " \n ").split(" "):
            if part == "\n":
                row, column = row + 1, 0
                continue
            if column + len(part) > limit:
                row, column = row + 1, 0
            if runs and runs[-1][0] == row and runs[-1][3] == position and position is not None:
                first = runs.pop()
                runs.append((row, first[1], f"{first[2]} {part}", position))
            elif part:
                runs.append((row, column, part, position))
            column += len(part) + 1
        column -= column > 0
    return runs, row + 1


def _lines(answer: DrawnAnswer, wide: float) -> int:
    return _wrapped(answer, wide)[1]


def _strip_axes(figure: Figure, number: int, per_row: int, tall: float, strip: float) -> list[Axes]:
    """Axes for the maps, in rows from the left along the lower edge."""
    width, height = figure.get_size_inches()
    cell = width / per_row
    axes = []
    for position in range(number):
        row, column = divmod(position, per_row)
        bottom = strip - (row + 1) * (cell * tall + 0.3)
        box = (column / per_row, bottom / height, 0.94 / per_row, 0.94 * cell * tall / height)
        axes.append(figure.add_axes(box))
    return axes


def _plot_object_map(image: Image.Image, answer: DrawnAnswer, position: int, ax: Axes) -> None:
    shown = answer.objects[position]
    norm = shared_norm([each.values.clip(0) for each in answer.objects])
    plot_map_on_image(image, shown.values, answer.box, norm=norm, point=shown.point, ax=ax)
    ax.set_title(_cut(shown.name, ax), fontsize=8, pad=3, backgroundcolor=tint(shown.colour, 0.5), parse_math=False)


def _cut(name: str, ax: Axes) -> str:
    """The name as far as it fits above the axes at 8 points."""
    room = int(ax.get_position().width * ax.get_figure().get_figwidth() * 72 / (0.58 * 8))
    return name if len(name) <= room else name[: room - 1].rstrip() + "…"
