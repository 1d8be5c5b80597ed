"""Table 7: mask recall with the map of one single head, against the mean over all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from einops import rearrange

from analysis.gcg.predictions import write_predictions
from analysis.gcg.scores import GcgScores
from analysis.heads.masks import HeadChoice
from analysis.paper import paper_table
from analysis.results import Result
from analysis.scoring.metrics import Interval, resampled_interval
from core.pipeline import Grounding


@dataclass(frozen=True)
class HeadRecall:
    """Mask recall of single heads on the same answers.

    Attributes:
        choice: the heads.
        recall: float [l, n], shares.
        overall: mean over these heads, with its interval over images.
        deviation: population standard deviation over these heads, with its interval.
        mean_map: recall with the mean over all the model's heads.
        mean_minus_single: mean map minus the mean over these heads, paired.
        n_heads: of the whole model.
    """

    choice: HeadChoice
    recall: np.ndarray
    overall: Interval
    deviation: Interval
    mean_map: Interval
    mean_minus_single: Interval
    n_heads: int


def write_head_predictions(
    heads: Iterable[tuple[str, Sequence[Grounding]]], choice: HeadChoice, directory: str | Path
) -> dict[str, Path]:
    """Write what each head grounds in GLaMM's format; returns the folder of each by its name.

    Args:
        heads: record id and the groundings of all heads, of `analysis.heads.masks.groundings_of_heads`.
        choice: the heads.
        directory: a folder for each head is made in it.
    """
    folders = {name: write_predictions((), Path(directory, name)) for name in choice.names}
    for id, groundings in heads:
        for folder, grounding in zip(folders.values(), groundings, strict=True):
            write_predictions([(id, grounding)], folder)
    return folders


def head_recall(
    choice: HeadChoice, single: Sequence[GcgScores], mean_map: GcgScores, *, n_heads: int, seed: int = 0
) -> HeadRecall:
    """Recall of every chosen head as GLaMM counts it.

    Args:
        choice: the heads.
        single: scores of each, in the order of `choice.names`.
        mean_map: of the mean over all heads, on the same images.
        n_heads: of the whole model.
        seed: of the bootstrap.
    """
    matched, true = np.stack([each.counts["matched"] for each in single]), mean_map.counts["true"]
    images = mean_map.n_images

    def recalls(counts: np.ndarray) -> np.ndarray:
        return (counts @ matched.T) / (counts @ true)[:, None]

    def interval(statistic) -> Interval:
        return resampled_interval(statistic, images, seed=seed)

    whole = np.ones((1, images))
    shape = {"l": len(choice.layers), "n": len(choice.heads)}
    of_mean = mean_map.statistic("recall")
    return HeadRecall(
        choice=choice,
        recall=rearrange(recalls(whole)[0], "(l n) -> l n", **shape),
        overall=interval(lambda counts: recalls(counts).mean(axis=1)),
        deviation=interval(lambda counts: recalls(counts).std(axis=1)),
        mean_map=mean_map.interval("recall", seed=seed),
        mean_minus_single=interval(lambda counts: of_mean(counts) - recalls(counts).mean(axis=1)),
        n_heads=n_heads,
    )


def recall_table(result: HeadRecall) -> pd.DataFrame:
    """Table 7's layout in percent: a row for each layer with its heads, their mean and population standard deviation;
    then all of them, and the mean map.
    """
    percent = 100 * result.recall
    frame = pd.DataFrame(percent, columns=[f"head {head}" for head in result.choice.heads])
    frame.insert(0, "layer", [str(layer) for layer in result.choice.layers])
    frame["mean"], frame["std"] = percent.mean(axis=1), percent.std(axis=1)
    rows = [
        (f"all {percent.size}", result.overall),
        (f"mean map of all {result.n_heads} heads", result.mean_map),
        ("mean map minus single heads", result.mean_minus_single),
    ]
    below = pd.DataFrame([{"layer": name} | own.columns("mean", ends=("low", "high")) for name, own in rows])
    below.loc[0, "std"] = percent.std()
    return pd.concat([frame, below], ignore_index=True)


def recall_results(result: HeadRecall) -> list[Result]:
    """Table 7 for the report's summary."""
    overall = paper_table(7).set_index("layer").loc["all"]
    of_mean = float(paper_table(4)["gcg_val_recall"].max())  # norm + point, which is what Table 7 is held against
    numbers = (
        ("single heads: mean", result.overall, overall["mean"]),
        ("single heads: standard deviation", result.deviation, overall["std"]),
        (f"mean map of all {result.n_heads} heads", result.mean_map, of_mean),
        ("mean map minus mean of single heads", result.mean_minus_single, of_mean - overall["mean"]),
    )
    return [
        Result(
            item="Table 7",
            quantity="mask recall (%)",
            method=method,
            interval=own.in_percent,
            paper=round(float(published), 1),
            paper_method="DiffLMM, 16 of 1 024 heads" if method.startswith("single") else "DiffLMM",
            note=f"{len(result.choice)} of this model's {result.n_heads} heads",
        )
        for method, own, published in numbers
    ]


def reading(result: HeadRecall) -> str:
    """One sentence that says how single heads compare with the mean map."""
    percent = 100 * result.recall
    layer, head = np.unravel_index(int(percent.argmax()), percent.shape)
    return (
        f"With the mean over all {result.n_heads} heads {result.mean_map.percent()} of the annotated phrases are "
        f"recalled, with single heads {percent.mean():.1f} ± {percent.std():.1f} % (the mean map's advantage: "
        f"{result.mean_minus_single.points()}); the best of these {percent.size}, layer {result.choice.layers[layer]} "
        f"head {result.choice.heads[head]}, reaches {percent.max():.1f} % (chosen on these images)."
    )
