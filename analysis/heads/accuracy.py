"""PAcc of every single head against the mean over all (the question of Table 7), from stored points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from einops import rearrange

from analysis.heads.points import measured_head_points
from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import Interval
from analysis.scoring.phrases import difference, match_phrases, own_points, score_chance, score_points
from core.errors import GroundingError
from core.pipeline import Grounding


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
    records: Iterable[tuple[str, Grounding]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
    *,
    seed: int = 0,
) -> HeadAccuracy:
    """PAcc of every single head and of the mean over all, on phrases matched to categories as in the pilot study.

    All numbers are nan where no phrase matched.

    Args:
        records: (image id, grounding) pairs with the points of `analysis.heads.points.measure_head_points`.
        dataset, matcher: the ground truth, and what matches phrases to its categories.
        seed: of the bootstrap.

    Raises:
        GroundingError: there are no points, or they come from models with different numbers of heads.
    """
    shapes: set[tuple[int, int]] = set()

    def one_shape() -> tuple[int, int]:
        if len(shapes) != 1:
            raise GroundingError(
                f"the stored points have (layers, heads) {sorted(shapes)}, and one shape is needed; "
                "compute them for at least one image, with one model, into an output_dir of their own"
            )
        return next(iter(shapes))

    def all_points(grounding: Grounding) -> np.ndarray:
        """Every head's point, then that of the mean over all."""
        single = measured_head_points(grounding).numpy()
        shapes.add(single.shape[1:3])
        one_shape()
        return np.concatenate([rearrange(single, "p l n c -> p (l n) c"), own_points(grounding)], axis=1)

    found = match_phrases(records, dataset, matcher, points=all_points)
    shape = one_shape()
    scores = score_points(found, dataset)
    single, mean = scores.means[:-1], len(scores.means) - 1
    return HeadAccuracy(
        accuracy=single.reshape(shape),
        mean_accuracy=scores.interval(mean, seed=seed),
        best_minus_mean=difference(scores, scores, (mean, int(single.argmax())), seed=seed),
        chance=float(score_chance(found, dataset).means[0]),
        n_phrases=len(scores.values),
        n_images=len(dataset),
    )


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
