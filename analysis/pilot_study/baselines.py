"""What the pilot study's points have to beat: blind ones, and the place where the whole answer looks most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float

from analysis.captured import recorded_generation
from analysis.scoring.coco import CocoDataset
from analysis.scoring.comparison import Way, compare_ways, describe_differences
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.phrases import match_phrases, score_chance, score_points
from core.pipeline import Grounding
from core.points import prompt_points
from core.records import RunStore

OWN = "each phrase's own point"
CENTRE, MOST, CHANCE = "image centre", "most attended cell of the mean map", "random point (expected)"


def baseline_points(grounding: Grounding) -> Float[np.ndarray, "p 3 2"]:
    """Each phrase's own point, then two that are the same for every phrase of the image: its middle pixel, and the peak
    of the mean map over the whole answer, taken from the map as a phrase's point is.

    Returns:
        (x, y) in pixels of the original image.
    """
    height, width = grounding.image_size
    shape = (len(grounding.phrases), 2)
    centre = torch.tensor([width // 2 + 0.5, height // 2 + 0.5]).expand(shape)
    attention = recorded_generation(grounding, grounding.options).attention
    mean = reduce(attention, "t k -> 1 k", "mean") if len(attention) else attention.new_zeros(1, attention.shape[1])
    corners = grounding.options.remove_corners
    most = prompt_points(mean, grounding.view, grounding.image_size, remove_corners=corners).expand(shape)
    return torch.stack([grounding.points, centre, most], dim=1).numpy()


def baseline_table(
    records: Iterable[tuple[str, Grounding]], dataset: CocoDataset, matcher: CategoryMatcher, *, seed: int = 0
) -> pd.DataFrame:
    """PAcc of a model's points and of the baselines on the same matched phrases, and each baseline minus the model.

    Args:
        records: (image id, grounding) pairs with maps.
        dataset, matcher: the ground truth, and what matches phrases to its categories.
        seed: of the bootstrap.

    Returns:
        As `analysis.scoring.comparison.compare_ways`; the names are in the column `points`.
    """
    found = match_phrases(records, dataset, matcher, points=baseline_points)
    scores = score_points(found, dataset)
    ways = {
        OWN: Way(scores, 0),
        CENTRE: Way(scores, 1),
        MOST: Way(scores, 2),
        CHANCE: Way(score_chance(found, dataset)),
    }
    return compare_ways(ways, OWN, seed=seed)


def baselines_of(
    stores: Mapping[str, RunStore], dataset: CocoDataset, matcher: CategoryMatcher, *, seed: int = 0
) -> pd.DataFrame:
    """`baseline_table` of one model as it is; of several one below the other, each model's label in its rows' names.

    Args:
        stores: records of each model by its label.
        dataset, matcher, seed: as in `baseline_table`.
    """
    tables = {
        label: baseline_table(dataset.records(store), dataset, matcher, seed=seed) for label, store in stores.items()
    }
    if len(tables) == 1:
        return next(iter(tables.values()))
    named = [table.assign(points=[f"{label}: {name}" for name in table["points"]]) for label, table in tables.items()]
    return pd.concat(named, ignore_index=True)


def reading(table: pd.DataFrame) -> str:
    """How the baselines compare with each model's own points, in the measured numbers."""
    return describe_differences(table, OWN)
