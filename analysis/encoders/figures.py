"""Figures of the encoder variants: losses per variant, loss curves, and losses over noise step and up block.

The paper's values have panels and axes of their own: other models, other data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.encoders.losses import KINDS, StageLosses
from analysis.encoders.rows import describe_variants, find_table, paper_losses
from analysis.figures import PALETTE, new_axes

COLOURS = ("#222222", *(colour for colour in PALETTE if colour != "#F0E442"))  # yellow lines are lost on white
MARKS = {"training_loss": (PALETTE[1], "o"), "held_out_loss": (PALETTE[5], "s")}
UNIT = "nats per answer token"
SOFT = "#666"


def table_plots(number: int) -> dict[str, Callable[[StageLosses, int], Figure]]:
    """The plot functions of Table 5 or 6, by the names of their files, in the order of reading."""
    plots = {"losses": plot_variant_losses}
    if find_table(number).panels:
        plots["noise_and_blocks"] = plot_noise_and_blocks
    plots["curves"] = plot_variant_curves
    return {f"table{number}_{name}": plot for name, plot in plots.items()}


def plot_variant_losses(losses: StageLosses, number: int) -> Figure:
    """Every run as a small dot and the mean over seeds as a large one, a panel for each loss; the paper's beside."""
    described, paper = describe_variants(number), paper_losses(number)
    figure, axes = plt.subplots(
        1, len(KINDS) + 1, figsize=(12.5, 1.5 + 0.42 * len(described)), width_ratios=[1, 1, 0.8], layout="constrained"
    )
    figure.get_layout_engine().set(wspace=0.04)
    for ax, (kind, title) in zip(axes, KINDS.items(), strict=False):
        plot_seed_dots(losses.runs, described, kind=kind, colour=MARKS[kind][0], ax=ax)
        _name(ax, "measured here")
        ax.set_xlabel(f"{title}\n({UNIT})")
    for ax in axes[1:-1]:
        ax.sharex(axes[0])
        ax.set_yticklabels([])
    runs = paper.rename(columns={"training_loss": "loss"})
    plot_seed_dots(runs, paper, kind="loss", colour="#999999", ax=axes[-1])
    axes[-1].yaxis.tick_right()
    _name(axes[-1], f"published: {paper['source'].iloc[0]}", color=SOFT)
    axes[-1].set_xlabel(f"training loss\n({paper['data'].iloc[0].split(',')[0]})", color=SOFT)
    axes[-1].tick_params(colors=SOFT)
    return figure


def plot_seed_dots(
    runs: pd.DataFrame, described: pd.DataFrame, *, kind: str, colour: str = PALETTE[1], ax: Axes | None = None
) -> Axes:
    """One row per variant, the first on top: its runs as small dots, their mean as a large one with its number.

    Args:
        runs: columns `variant` and `kind`.
        described: `variant` and `label` of each row; a variant without runs is marked "not run".
        kind: column of the loss.
    """
    ax = new_axes(6, 1 + 0.4 * len(described)) if ax is None else ax
    for place, row in enumerate(described.to_dict("records")):
        found = runs.loc[runs["variant"] == row["variant"], kind].to_numpy(float)
        if not len(found):
            ax.text(0.02, place, "not run", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=SOFT)
            continue
        if len(found) > 1:
            ax.plot(found, np.full(len(found), place), "o", color=colour, markersize=4, alpha=0.6, mew=0,
                    label=f"{row['label']}: seeds")  # fmt: skip
        mean = found.mean()
        ax.plot([mean], [place], "o", color=colour, markersize=9, fillstyle="none", mew=1.6, label=row["label"])
        ax.annotate(f"{mean:.3f}", (mean, place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.set_yticks(range(len(described)), described["label"])
    ax.set_ylim(len(described) - 0.5, -0.7)
    ax.margins(x=0.12)
    ax.set_xlabel(f"loss ({UNIT})")
    _plain(ax, "x")
    return ax


def plot_variant_curves(losses: StageLosses, number: int) -> Figure:
    """Training loss of every variant, mean over seeds on thin single seeds; beside it the last half, enlarged."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 4.4), layout="constrained")
    described = describe_variants(number)
    labels = dict(zip(described["variant"], described["label"], strict=True))
    curves = losses.of(find_table(number).variants).curves
    plot_curves(curves, labels, ax=axes[0])
    _name(axes[0], "all steps")
    late = curves[curves["step"] > losses.recipe["steps"] / 2]
    plot_curves(late if len(late) else curves, labels, ax=axes[1])
    _name(axes[1], "the last half, enlarged")
    if axes[0].lines:
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def plot_curves(curves: pd.DataFrame, labels: Mapping[str, str], *, ax: Axes | None = None) -> Axes:
    """Loss over optimiser steps: a line per variant, the mean over seeds, on thin lines of single seeds.

    Args:
        curves: `variant`, `seed`, `step`, `loss`.
        labels: name of each variant; a variant's colour is that of its place here.
    """
    ax = new_axes(7, 4) if ax is None else ax
    colours = dict(zip(labels, COLOURS, strict=False))
    for variant, runs in curves.groupby("variant", sort=False):
        wide = runs.pivot(index="step", columns="seed", values="loss")
        if wide.shape[1] > 1:
            for seed, single in wide.items():
                ax.plot(single.index, single, color=colours[variant], linewidth=0.6, alpha=0.4, zorder=1,
                        label=f"_{labels[variant]}, seed {seed}")  # fmt: skip
        ax.plot(wide.index, wide.mean(axis=1), color=colours[variant], linewidth=1.6, label=labels[variant])
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(f"training loss ({UNIT})")
    _plain(ax, "y")
    return ax


def plot_noise_and_blocks(losses: StageLosses, number: int = 6) -> Figure:
    """Table 6 over the noise step and over the up block: ours above, the paper's below, each on axes of its own."""
    described, paper, panels = describe_variants(number), paper_losses(number), find_table(number).panels
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), sharex="col", height_ratios=[1.3, 1], layout="constrained")
    for (upper, lower), (varied, (fixed, at)) in zip(axes.T, panels.items(), strict=True):
        held = f"{fixed.replace('_', ' ')} {at}"
        chosen = described[described[fixed] == at].sort_values(varied)
        for kind, title in KINDS.items():
            plot_means_over(losses.runs.merge(chosen, on="variant"), varied, kind=kind, label=title, ax=upper)
        _name(upper, f"measured here, {held}")
        published = paper[paper[fixed] == at].sort_values(varied)
        lower.plot(published[varied], published["training_loss"], "o-", color="#999999", label="published")
        _name(lower, f"published: {published['source'].iloc[0]}, {held}", color=SOFT)
        lower.set_xticks(chosen[varied].tolist())
        lower.set_xlabel(varied.replace("_", " "))
        lower.margins(y=0.15)
        _plain(lower, "y")
    axes[0, 0].set_ylabel(f"loss ({UNIT})")
    axes[1, 0].set_ylabel("converged stage-1 loss", color=SOFT)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=8)
    return figure


def plot_means_over(runs: pd.DataFrame, varied: str, *, kind: str, label: str, ax: Axes | None = None) -> Axes:
    """Mean loss over seeds as a line over `varied`, every run as a small dot; a gap is a variant that was not run."""
    ax = new_axes(5, 3.5) if ax is None else ax
    colour, mark = MARKS[kind]
    means = runs.groupby(varied)[kind].mean()
    ax.plot(means.index, means, marker=mark, color=colour, markersize=7, fillstyle="none", mew=1.6, label=label)
    ax.plot(runs[varied], runs[kind], mark, color=colour, markersize=3.5, alpha=0.6, mew=0, label=f"_{label}: runs")
    ax.margins(x=0.08, y=0.15)
    _plain(ax, "y")
    return ax


def _name(ax: Axes, text: str, *, color: str = "black") -> None:
    ax.set_title(text, loc="left", fontsize=9, color=color)


def _plain(ax: Axes, axis: str) -> None:
    ax.grid(axis=axis, color="#ddd", linewidth=0.8)
    ax.set_axisbelow(True)
    hidden: Sequence[str] = ("top", "right", "left") if axis == "x" else ("top", "right")
    ax.spines[list(hidden)].set_visible(False)
    if axis == "x":
        ax.tick_params(axis="y", length=0)
