"""Table 4 as a picture: mIoU and mask recall of every variant, the paper's beside."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import plot_intervals


def plot_variants(ours: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """mIoU and mask recall with 95 % intervals above, the paper's below on Axes of their own: another model and data.

    Args:
        ours: `analysis.ablations.variants.variant_table`.
        paper: `analysis.ablations.variants.paper_variants`.
    """
    names = ("mIoU", "recall")
    heights = [len(ours) + 0.5, len(paper)]
    size = (10.5, 1.8 + 0.42 * sum(heights))
    figure, axes = plt.subplots(2, 2, figsize=size, height_ratios=heights, layout="constrained")
    for column, name in enumerate(names):
        above, below = axes[:, column]
        plot_intervals(ours, label="variant", value=name, low=f"{name}_low", high=f"{name}_high", ax=above)
        plot_intervals(paper, label="variant", value=name, colours="#AAAAAA", ax=below)
        for ax in (above, below):
            ax.set_xlim(0, max(10.0, 1.1 * np.nanmax([*ours[f"{name}_high"], *ours[name], *paper[name]])))
            if column:
                ax.set_yticklabels([])
        above.set_title(f"{name}, measured here", loc="left", fontsize=9)
        below.set_title(f"{name}, published: {paper['source'].iloc[0]}", loc="left", fontsize=9, color="#666")
    return figure
