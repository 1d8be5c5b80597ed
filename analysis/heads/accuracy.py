"""PAcc of every single head against the mean over all (the question of Table 7), from stored points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange

from analysis.heads.points import HeadPoints
from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import THRESHOLD, CategoryMatcher
from analysis.scoring.metrics import Interval, difference_interval, per_image, point_hits, ratio_interval
from analysis.scoring.random_point import phrase_chances
from core.errors import GroundingError


@dataclass(frozen=True)
class HeadAccuracy:
    """PAcc of every head on the same matched phrases.

    Attributes:
        accuracy: float [l, n], shares.
        mean_accuracy: PAcc of the mean over all layers and heads, with its interval over images.
        best_minus_mean: best head minus the mean map, paired interval over images. The best of many heads is chosen on
            these very images, so this flatters the best head.
        chance: expected PAcc of a uniformly random point for the same phrases.
        n_phrases: matched phrases.
        n_images: images in the dataset.
    """

    accuracy: np.ndarray
    mean_accuracy: Interval
    best_minus_mean: Interval
    chance: float
    n_phrases: int
    n_images: int

    @property
    def best(self) -> tuple[int, int]:
        """(layer, head) of the highest accuracy; the first of equals."""
        layer, head = np.unravel_index(int(np.argmax(self.accuracy)), self.accuracy.shape)
        return int(layer), int(head)


def head_accuracy(
    store: Iterable[tuple[str, HeadPoints]],
    dataset: CocoDataset,
    nlp: Any,
    *,
    match_by: str = "head",
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> HeadAccuracy:
    """PAcc of every single head and of the mean over all, on phrases matched to categories as in the pilot study.

    All numbers are nan where no phrase matched.

    Raises:
        GroundingError: there are no points, or they come from models with different numbers of heads.
    """
    matcher = CategoryMatcher(nlp, by=match_by, threshold=threshold)
    shapes, rows, points = set(), [], []
    for record_id, found in store:
        image = dataset.image(record_id)
        present = dataset.annotated(image.id)
        shapes.add(found.points.shape[1:3])
        for number, phrase in enumerate(found.phrases):
            category_id, _ = matcher.best(phrase, present)
            if category_id is not None:
                rows.append((image.id, category_id))
                single = rearrange(found.points[number], "l n c -> (l n) c")
                points.append(np.concatenate([single, found.mean_points[[number]]]))
    if len(shapes) != 1:
        raise GroundingError(
            f"the stored points have (layers, heads) {sorted(shapes)}, and one shape is needed; "
            "compute them for at least one image, with one model, into an output_dir of their own"
        )
    (layers, heads) = shapes.pop()
    frame = pd.DataFrame(rows, columns=["image_id", "category_id"], dtype=int)
    stacked = np.stack(points) if points else np.zeros((0, layers * heads + 1, 2))
    return _accuracy(frame, _hits(frame, stacked, dataset), (layers, heads), dataset, seed)


def _accuracy(
    frame: pd.DataFrame, hits: np.ndarray, shape: tuple[int, int], dataset: CocoDataset, seed: int
) -> HeadAccuracy:
    single = hits[:, :-1].sum(axis=0) / len(hits) if len(hits) else np.full(hits.shape[1] - 1, np.nan)
    best_sum, count = per_image(pd.Series(hits[:, int(single.argmax())]), frame["image_id"], dataset)
    mean_sum, _ = per_image(pd.Series(hits[:, -1]), frame["image_id"], dataset)
    return HeadAccuracy(
        accuracy=single.reshape(shape),
        mean_accuracy=ratio_interval(mean_sum, count, seed=seed),
        best_minus_mean=difference_interval((mean_sum, best_sum), (count, count), seed=seed),
        chance=float(phrase_chances(frame, dataset).mean()),
        n_phrases=len(frame),
        n_images=len(dataset),
    )


def _hits(frame: pd.DataFrame, points: np.ndarray, dataset: CocoDataset) -> np.ndarray:
    """Bool [p, heads]: whether each head's point for each phrase lies on its category."""
    n_heads = points.shape[1]
    long = frame.loc[frame.index.repeat(n_heads)].reset_index(drop=True)
    flat = rearrange(points, "p m c -> (p m) c")
    return point_hits(long.assign(x=flat[:, 0], y=flat[:, 1]), dataset).reshape(len(frame), n_heads)


def layer_table(result: HeadAccuracy) -> pd.DataFrame:
    """Table 7's layout in percent: a row per layer with its heads, their mean and population standard deviation."""
    percent = 100 * result.accuracy
    frame = pd.DataFrame(percent, columns=[f"head {head}" for head in range(percent.shape[1])])
    frame.insert(0, "layer", [str(layer) for layer in range(len(percent))])
    frame["mean"], frame["std"] = percent.mean(axis=1), percent.std(axis=1)
    overall = {"layer": "all", "mean": percent.mean(), "std": percent.std()}
    of_mean = {"layer": "mean map over all layers and heads", "mean": 100 * result.mean_accuracy.value}
    chance = {"layer": "random point, same phrases (expected)", "mean": 100 * result.chance}
    return pd.concat([frame, pd.DataFrame([overall, of_mean, chance])], ignore_index=True)


def reading(result: HeadAccuracy) -> str:
    """One sentence that says how single heads compare with the mean over all, in the measured numbers."""
    if result.n_phrases == 0:
        return f"No phrase matched an annotated category in {result.n_images} images, so heads cannot be compared here."
    percent = 100 * result.accuracy
    layer, head = result.best
    worse = 100 * float((result.accuracy < result.mean_accuracy.value).mean())
    return (
        f"On {result.n_phrases} matched phrases the mean over all {percent.size} heads points right in "
        f"{result.mean_accuracy.percent()}; single heads in {percent.mean():.1f} ± {percent.std():.1f} %, and "
        f"{worse:.0f} % of them do worse than the mean. The best one, layer {layer} head {head}, reaches "
        f"{percent[layer, head]:.1f} % (chosen on these images; minus the mean: {result.best_minus_mean.points()})."
    )
