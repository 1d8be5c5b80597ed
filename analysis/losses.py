"""Loss curves of training runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from core.errors import GroundingError
from core.training.loss_log import read_losses


def load_losses(runs: Mapping[str, str | Path]) -> pd.DataFrame:
    """The loss logs of several runs, one row per logged step: run, step, epoch, loss, learning_rate, grad_norm.

    Args:
        runs: name of each run: its directory or its loss log.

    Raises:
        GroundingError: no runs, or one without a log.
    """
    if not runs:
        raise GroundingError("no training runs were given; name at least one directory")
    frames = [pd.DataFrame(read_losses(path)).assign(run=name) for name, path in runs.items()]
    table = pd.concat(frames, ignore_index=True)
    return table[["run", *(column for column in table.columns if column != "run")]]


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


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential mean without the bias towards its start: weight 0 changes nothing, near 1 smooths most."""
    out, mean = np.empty(len(values)), 0.0
    for place, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        out[place] = mean / (1 - weight ** (place + 1))
    return out


def plot_losses(losses: pd.DataFrame, *, smoothing: float = 0.9, ax: Axes | None = None) -> Axes:
    """Training loss over optimiser steps, one smoothed line per run on its faint raw one; returns the Axes.

    Args:
        losses: from `load_losses`.
        smoothing: weight of the exponential mean, 0 (none) to below 1.

    Raises:
        GroundingError: a smoothing outside that range.
    """
    if not 0 <= smoothing < 1:
        raise GroundingError(f"smoothing is at least 0 and below 1, got {smoothing}")
    ax = plt.gca() if ax is None else ax
    for name, run in losses.groupby("run", sort=False):
        run = run.sort_values("step")
        (line,) = ax.plot(run["step"], smoothed(run["loss"].to_numpy(), smoothing), label=str(name))
        if smoothing:
            ax.plot(run["step"], run["loss"], color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss (nats per answer token)")
    ax.legend()
    return ax
