"""Loss curves of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures import PALETTE, new_axes
from core.errors import GroundingError

WINDOW = 20  # the default smoothing looks back over a twentieth of a run
START = 0.05  # share of the steps, the fall from random weights, that does not decide what the axis shows


def load_losses(runs: Mapping[str, str | Path | Sequence[str | Path]]) -> pd.DataFrame:
    """The loss logs of several runs, one row per logged step.

    Args:
        runs: name of each run: its directory or its loss log; or a sequence of them, its repetitions with other seeds.

    Returns:
        Columns run, repetition (from 0), step, epoch, loss, learning_rate, grad_norm.

    Raises:
        GroundingError: no runs, or one without a log.
    """
    from core.training.loss_log import read_losses

    if not runs:
        raise GroundingError("no training runs were given; name at least one directory")
    frames = []
    for name, paths in runs.items():
        for number, path in enumerate([paths] if isinstance(paths, (str, Path)) else paths):
            frames.append(pd.DataFrame(read_losses(path)).assign(run=name, repetition=number))
    table = pd.concat(frames, ignore_index=True)
    first = ["run", "repetition"]
    return table[[*first, *(column for column in table.columns if column not in first)]]


def converged_loss(losses: pd.DataFrame, *, share: float = 0.1) -> pd.DataFrame:
    """Mean loss of the last `share` of each run's steps: columns run, loss, steps (how many were averaged).

    Raises:
        GroundingError: a share outside 0 to 1.

    Source: paper Tables 5 and 6 report converged stage-1 losses, without saying how they are averaged.
    """
    if not 0 < share <= 1:
        raise GroundingError(f"share is above 0 and at most 1, got {share}")
    rows = []
    for name, run in losses.groupby("run", sort=False):
        last = run.sort_values("step")["loss"].tail(max(round(share * len(run)), 1))
        rows.append({"run": name, "loss": last.mean(), "steps": len(last)})
    return pd.DataFrame(rows)


def reading(losses: pd.DataFrame, *, share: float = 0.1) -> str:
    """Where the loss of each run began and where it ended, in a sentence each.

    Args:
        losses: from `load_losses`.
        share: of the steps that beginning and end are averaged over.
    """
    told = []
    for name, run in losses.groupby("run", sort=False):
        run = run.sort_values("step")
        count = max(round(share * len(run)), 1)
        first, last = run["loss"].head(count).mean(), run["loss"].tail(count).mean()
        told.append(
            f"{name}: from {first:.2f} to {last:.2f} nats per answer token in {run['step'].max()} steps "
            f"(means of the first and last {count} logged)."
        )
    return "\n".join(told)


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential mean without the bias towards its start: weight 0 changes nothing, near 1 smooths most."""
    out, mean = np.empty(len(values)), 0.0
    for place, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        out[place] = mean / (1 - weight ** (place + 1))
    return out


def plot_losses(losses: pd.DataFrame, *, smoothing: float | None = None, ax: Axes | None = None) -> Axes:
    """Training loss over optimiser steps, one smoothed line per run; returns the Axes.

    A run's raw losses lie faintly behind its line. A run with repetitions is drawn as their mean, with a thin line for
    each. The axis shows what comes after the first few steps; the legend gives the last value of every line.

    Args:
        losses: from `load_losses`.
        smoothing: weight of the exponential mean, 0 (none) to below 1; by default it grows with the length of a run.

    Raises:
        GroundingError: a smoothing outside that range.
    """
    if smoothing is not None and not 0 <= smoothing < 1:
        raise GroundingError(f"smoothing is at least 0 and below 1, got {smoothing}")
    ax = new_axes(7, 3.6) if ax is None else ax
    handles, shown = {}, []
    for number, (name, run) in enumerate(losses.groupby("run", sort=False)):
        colour = PALETTE[number % len(PALETTE)]
        lines = _smoothed_lines(run, smoothing)
        mean = lines.mean(axis=1)
        (line,) = ax.plot(mean.index, mean, color=colour, linewidth=1.8, label=str(name), zorder=3)
        if lines.shape[1] > 1:
            for repetition, values in lines.items():
                label = f"{name}, repetition {repetition}"
                ax.plot(values.index, values, color=colour, alpha=0.55, linewidth=0.7, label=label, zorder=2)
        elif smoothing != 0:
            ax.plot(run["step"], run["loss"], color=colour, alpha=0.22, linewidth=0.7, label=f"{name}, raw", zorder=1)
        handles[f"{name}  {mean.iloc[-1]:.3f}"] = line
        shown.append(lines.iloc[int(START * len(lines)) :].to_numpy().ravel())
    low, high = np.concatenate(shown).min(), np.concatenate(shown).max()
    margin = 0.08 * (high - low) or 0.1
    ax.set(xlabel="optimiser step", ylabel="loss (nats per answer token)", ylim=(low - margin, high + margin))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
    ax.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return ax


def _smoothed_lines(run: pd.DataFrame, smoothing: float | None) -> pd.DataFrame:
    """Smoothed losses of one run: a row per step that all its repetitions have logged, a column per repetition."""
    if "repetition" not in run:
        run = run.assign(repetition=0)
    table = run.pivot(index="step", columns="repetition", values="loss").sort_index().dropna()
    weight = min(max(1 - WINDOW / max(len(table), 1), 0.0), 0.99) if smoothing is None else smoothing
    return table.apply(lambda column: pd.Series(smoothed(column.to_numpy(), weight), index=table.index))
