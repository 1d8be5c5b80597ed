"""Tables 5 and 6 of the paper at embedded scale: mean and spread over seeds, paired differences, rank agreement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import sqrt

import numpy as np
import pandas as pd

from analysis.encoders.losses import KINDS, StageLosses
from analysis.encoders.rows import describe_variants, find_table, paper_losses
from analysis.results import Result
from analysis.scoring.metrics import Interval

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last one serves for more (a little wide)."""


def loss_table(losses: StageLosses, number: int) -> pd.DataFrame:
    """One row per variant in the paper's order: mean over seeds, sample standard deviation, smallest and largest.

    Returns:
        The columns of `describe_variants`, then for each loss `<loss>`, `<loss>_sd`, `<loss>_min`, `<loss>_max` (nats
        per answer token) and `seeds`, for example "3 (0, 1, 2)"; a variant without a run has "not run" there.
    """
    rows = []
    for row in describe_variants(number).to_dict("records"):
        runs = losses.runs[losses.runs["variant"] == row["variant"]]
        seeds = sorted(runs["seed"].tolist())
        for kind in KINDS:
            row |= {kind: runs[kind].mean(), f"{kind}_sd": runs[kind].std(ddof=1)}
            row |= {f"{kind}_min": runs[kind].min(), f"{kind}_max": runs[kind].max()}
        rows.append({**row, "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "not run"})
    return pd.DataFrame(rows)


def loss_results(losses: StageLosses, number: int) -> list[Result]:
    """What Table 5 or 6 measured, for the report's summary; the interval is the range over the seeds."""
    found, paper = [], paper_losses(number).set_index("variant")["training_loss"]
    for row in loss_table(losses, number).dropna(subset=["training_loss"]).to_dict("records"):
        found.append(
            Result(
                item=f"Table {number}",
                quantity="training loss (nats per token)",
                method=row["label"],
                interval=Interval(*(row[f"training_loss{end}"] for end in ("", "_min", "_max"))),
                paper=float(paper[row["variant"]]),
                note="the paper's number is of the same variant; range over the seeds",
            )
        )
    return found


def seed_table(losses: StageLosses, number: int) -> pd.DataFrame:
    """The single runs: one row per variant, one column per loss and seed, named "<loss>, seed <seed>"."""
    table = describe_variants(number)[["label", "variant"]]
    runs = losses.of(find_table(number).variants).runs
    for kind in KINDS:
        wide = runs.pivot(index="variant", columns="seed", values=kind)
        table = table.join(wide.rename(columns={seed: f"{kind}, seed {seed}" for seed in wide}), on="variant")
    return table


def paired_differences(losses: StageLosses, number: int) -> pd.DataFrame:
    """Loss minus that of the table's reference with the same seed, over the seeds of both.

    The two runs of a pair see the same samples in the same order and are measured on the same held-out scenes.

    Returns:
        `label`, `variant`, then for each loss `<loss>` (mean difference), `<loss>_sd`, `<loss>_low`, `<loss>_high`
        (95 % interval of Student's t; missing below two pairs), and `pairs`; without the reference's own row.
    """
    described, compared = describe_variants(number)[["label", "variant"]], find_table(number).reference
    reference = losses.runs[losses.runs["variant"] == compared].set_index("seed")
    rows = []
    for row in described[described["variant"] != compared].to_dict("records"):
        runs = losses.runs[losses.runs["variant"] == row["variant"]].set_index("seed")
        seeds = runs.index.intersection(reference.index)
        for kind in KINDS:
            difference = (runs.loc[seeds, kind] - reference.loc[seeds, kind]).astype(float)
            mean, sd, n = difference.mean(), difference.std(ddof=1), len(seeds)
            reach = STUDENT[min(n - 1, len(STUDENT)) - 1] * sd / sqrt(n) if n > 1 else float("nan")
            row |= {kind: mean, f"{kind}_sd": sd, f"{kind}_low": mean - reach, f"{kind}_high": mean + reach}
        rows.append({**row, "pairs": len(seeds)})
    return pd.DataFrame(rows)


def rank_agreement(losses: StageLosses, number: int) -> pd.DataFrame:
    """Spearman's correlation of our mean losses with the paper's, over the variants that were run.

    Returns:
        One row per loss: `loss`, `rows` (variants compared), `spearman`, `spearman_min` and `spearman_max` (of single
        seeds that ran all of these variants), and `chance`: the share of all orders of so many rows, in percent, whose
        correlation is at least as high. All are missing below three rows.
    """
    paper = paper_losses(number).set_index("variant")["training_loss"]
    runs = losses.of(find_table(number).variants).runs
    rows = []
    for kind, said in KINDS.items():
        ours = runs.groupby("variant")[kind].mean()
        theirs = paper[ours.index]
        seeds = runs.pivot(index="seed", columns="variant", values=kind).dropna()
        single = [spearman(seed.to_numpy(), paper[seed.index].to_numpy()) for _, seed in seeds.iterrows()]
        rho = spearman(ours.to_numpy(), theirs.to_numpy())
        row = {"loss": said, "rows": len(ours), "spearman": rho}
        row |= {"spearman_min": min(single, default=float("nan")), "spearman_max": max(single, default=float("nan"))}
        rows.append(row | {"chance": 100 * chance_of_order(len(ours), rho, theirs.to_numpy())})
    return pd.DataFrame(rows)


def spearman(first: Sequence[float | int] | np.ndarray, second: Sequence[float | int] | np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; nan below three values or where one side is all ties."""
    ranks = [pd.Series(np.asarray(values, dtype=float)).rank() for values in (first, second)]
    if len(ranks[0]) < 3 or any(rank.nunique() < 2 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def chance_of_order(n: int, rho: float, values: np.ndarray) -> float:
    """Share of the n! orders whose rank correlation with `values` is at least `rho` (one-sided permutation test)."""
    if np.isnan(rho):
        return float("nan")
    ranks = pd.Series(np.asarray(values, dtype=float)).rank().to_numpy()
    orders = np.array(list(permutations(range(n))), dtype=float)
    centred, ranks = orders - orders.mean(axis=1, keepdims=True), ranks - ranks.mean()
    found = centred @ ranks / np.sqrt((centred**2).sum(axis=1) * (ranks**2).sum())
    return float((found >= rho - 1e-9).mean())
