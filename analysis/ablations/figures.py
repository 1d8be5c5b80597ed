"""Table 4 as a picture: mIoU and mask recall of every variant, the paper's beside."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.scoring.figures import plot_beside_paper


def plot_variants(ours: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """mIoU and mask recall with 95 % intervals above, the paper's below on Axes of their own: another model and data.

    Args:
        ours: `analysis.ablations.variants.variant_table`.
        paper: `analysis.ablations.variants.paper_variants`.
    """
    return plot_beside_paper(ours, paper, ("mIoU", "recall"), label="variant", width=10.5)
