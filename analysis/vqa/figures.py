"""Answers as pictures: what is right with intervals, yes and no, and where a model looked when it answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import PALETTE, PICTURE, SEQUENTIAL, shared_norm

KINDS = ("presence", "place", "number", "background", "color")
STRATEGIES = ("random", "popular", "adversarial")
ASKED, DESCRIBED = "POPE, scenes", "POPE, scenes described"


def plot_scores(frame: pd.DataFrame) -> Figure:
    """Accuracy by kind of question above; below POPE's accuracy, and the share of yes, when the models are asked and
    when their descriptions are read. A bar with its 95 % interval for every model.

    Args:
        frame: `analysis.vqa.table.metrics_table`; methods that were not asked about scenes are left out.
    """
    values = frame.set_index(["method", "benchmark", "metric"])[["percent", "low", "high"]]
    asked = frame.loc[frame["benchmark"] == ASKED, "method"]
    methods = list(dict.fromkeys(asked))
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    above, left, right = figure.subplot_mosaic([["kinds", "kinds"], ["accuracy", "yes"]]).values()
    groups = {kind: (f"VQA, scenes: {kind}", kind) for kind in KINDS}
    _bars(values, methods, {"all": ("VQA, scenes", "accuracy")} | groups, above)
    above.set_title("right answers, by what is asked", loc="left", fontsize=10)
    for ax, metric, name in ((left, "accuracy", "right answers"), (right, "yes_ratio", "answers that are yes")):
        pope = {
            f"{strategy}\n{how}": (f"{source}: {strategy}", f"{strategy}_{metric}")
            for source, how in ((ASKED, "asked"), (DESCRIBED, "described"))
            for strategy in STRATEGIES
        }
        _bars(values, methods, pope, ax)
        ax.axhline(50, color="#444", linewidth=1, linestyle=":", label="half" if metric == "accuracy" else "truth")
        ax.set_title(f"POPE: {name}", loc="left", fontsize=10)
    if methods:
        above.legend(frameon=False, fontsize=8, ncols=len(methods), loc="lower left", bbox_to_anchor=(0.3, 1.0))
    return figure


def _bars(values: pd.DataFrame, methods: Sequence[str], groups: Mapping[str, tuple[str, str]], ax: Axes) -> None:
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        places = np.arange(len(groups)) + width * (number - (len(methods) - 1) / 2)
        rows = values.reindex([(method, *key) for key in groups.values()]).to_numpy(float)
        colour = PALETTE[(number + 1) % len(PALETTE)]
        ax.bar(places, rows[:, 0], 0.92 * width, color=colour, label=method)
        for place, (_, low, high), name in zip(places, rows, groups, strict=True):
            ax.plot([place, place], [low, high], "-", color="#222", linewidth=1.3, label=f"_{method}: {name}")
    ax.set_xticks(range(len(groups)), list(groups), fontsize=8)
    ax.set(ylim=(0, 103), ylabel="%")
    ax.grid(axis="y", color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def plot_answers(picture: Any, looks: Sequence[Mapping[str, Any]]) -> Figure:
    """One picture under several questions: what was answered, and the attention at the words that answer, on one scale.

    Args:
        picture: RGB.
        looks: of `analysis.vqa.looks.look`.
    """
    across = min(3, max(len(looks), 1))
    down = -(-len(looks) // across)
    grey = np.asarray(picture).mean(axis=2)
    height, width = grey.shape
    size = (3.0 * across, (3.0 * height / width + 0.8) * down)
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    norm = shared_norm(np.concatenate([np.ravel(each["grid"]) for each in looks] or [[0.0]]), quantile=0.995)
    for ax in axes.flat[len(looks) :]:
        ax.axis("off")
    for ax, each in zip(axes.flat, looks, strict=False):
        x0, y0, x1, y1 = each["box"]
        ax.imshow(grey, extent=(0, width, height, 0), cmap="gray", vmin=-60, vmax=255, gid=PICTURE)
        frame = {"extent": (x0, x1, y1, y0), "alpha": 0.62, "interpolation": "bicubic"}
        ax.imshow(each["grid"], cmap=SEQUENTIAL, norm=norm, label=f"attention at {each['words']!r}", **frame)
        ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        ax.axis("off")
        verdict = "" if each["right"] else f"  (right: {each['expected']})"
        ax.set_title(fill(each["question"], 40), loc="left", fontsize=8, fontweight="bold")
        said = fill(f"{each['answer']}{verdict}", 44)
        colour = "#1a7a3a" if each["right"] else "#b02a1a"
        ax.text(0, -0.02, said, transform=ax.transAxes, fontsize=7.5, va="top", color=colour)
        label = {"color": "white", "fontsize": 7, "ha": "right", "va": "bottom"}
        ax.text(0.98, 0.02, f"map: “{each['words']}”", transform=ax.transAxes, **label)
    return figure
