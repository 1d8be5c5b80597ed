"""Choosing heads: by what is known of them without annotations, or with, and what the choice is worth on other images.

Every criterion ranks the heads on some images; the best of them then point on the images that were left out (k-fold
cross-fitting), so that no head is praised on the images on which it was chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int

from analysis.heads.scores import HeadScores, head_means
from analysis.heads.statistics import AGREEMENT, ENTROPY, HEAD_MAPS, MASS, measured
from analysis.scoring.comparison import Way, compare_ways
from analysis.scoring.metrics import Interval
from analysis.scoring.phrases import Phrases, phrase_scores, score_points
from core.errors import GroundingError
from core.pipeline import Grounding
from core.points import prompt_points

ALL, AVERAGE = "mean map of all heads", "a single head (average over all)"
VOTES = 10  # heads that get a vote of each phrase, of the thousand that the criterion was made for


def elbow(values: Float[np.ndarray, " m"]) -> float:
    """The value at which a sorted curve is farthest from the straight line between its ends; of equals the lowest.

    Source: the first criterion of arXiv 2503.06287 as released: heads at or above it pay attention to the image.
    """
    curve = np.sort(values)
    return float(curve[np.abs(curve - np.linspace(curve[0], curve[-1], len(curve))).argmax()])


def localization_votes(
    mass: Float[np.ndarray, "p m"], entropy: Float[np.ndarray, "p m"], *, votes: int = VOTES
) -> Float[np.ndarray, " m"]:
    """How often each head is among those of the lowest spatial entropy of a phrase, of the heads whose mean image mass
    reaches the elbow; the others have none.

    Args:
        mass, entropy: of all phrases and heads.
        votes: heads that get a vote of each phrase. Where no more than these pass, half of those that do (ours: the
            criterion was made for models of a thousand heads, and would choose none of a small model's).

    Source: arXiv 2503.06287, where the three heads of the most votes point. Its code further leaves out the first two
        layers and heads that look at the picture's bottom row; we do not.
    """
    found = np.zeros(mass.shape[1])
    if len(mass) == 0:
        return found
    average = mass.mean(axis=0)
    passing = np.flatnonzero(average >= elbow(average))
    number = votes if len(passing) > votes else max(1, len(passing) // 2)
    chosen = np.argsort(entropy[:, passing], axis=1, kind="stable")[:, :number]
    np.add.at(found, passing[chosen], 1.0)
    return found / len(mass)


def _by_votes(scores: HeadScores, phrases: np.ndarray) -> np.ndarray:
    return localization_votes(scores.statistics[MASS][phrases], scores.statistics[ENTROPY][phrases])


def _by_accuracy(scores: HeadScores, phrases: np.ndarray) -> np.ndarray:
    return head_means(scores.hits.values[phrases[scores.matched], :-1])


CRITERIA: dict[str, Callable[[HeadScores, np.ndarray], np.ndarray]] = {
    "most image mass": lambda scores, phrases: head_means(scores.statistics[MASS][phrases]),
    "lowest spatial entropy": lambda scores, phrases: -head_means(scores.statistics[ENTROPY][phrases]),
    "most agreement": lambda scores, phrases: head_means(scores.statistics[AGREEMENT][phrases]),
    "LocalizationHeads' criterion": _by_votes,
    "highest PAcc (supervised)": _by_accuracy,
}
"""What makes a head good on some phrases (bool [p] of all): a number for each head, [m], the highest the best. Only the
last one looks at annotations."""


@dataclass(frozen=True)
class Choice:
    """The heads that each criterion ranks first, without the images on which they are to point.

    Attributes:
        fold: of each image, in the order of the dataset.
        ranked: by criterion, for each fold all heads, the best first.
    """

    fold: Int[np.ndarray, " images"]
    ranked: Mapping[str, Int[np.ndarray, "folds m"]]


def choose_heads(scores: HeadScores, *, folds: int = 5, seed: int = 0) -> Choice:
    """Rank the heads by every criterion, for each part of the images on all the others.

    Raises:
        GroundingError: fewer than two images.
    """
    n_images = len(scores.dataset)
    if min(folds, n_images) < 2:
        raise GroundingError(f"{n_images} images in {folds} parts leave none to choose heads on; give at least two")
    order = np.random.default_rng(seed).permutation(n_images)
    fold = np.empty(n_images, dtype=int)
    fold[order] = np.arange(n_images) % min(folds, n_images)
    of_phrase = fold[scores.places]
    ranked = {}
    for name, criterion in CRITERIA.items():
        values = [np.nan_to_num(criterion(scores, of_phrase != part), nan=-np.inf) for part in np.unique(fold)]
        ranked[name] = np.stack([np.argsort(-each, kind="stable") for each in values])
    return Choice(fold, ranked)


def chosen_points(grounding: Grounding, sets: Sequence[Sequence[int]]) -> Float[np.ndarray, "p s 2"]:
    """Each phrase's point from the mean map of each set of heads: (x, y) in pixels of the original image.

    Raises:
        GroundingError: the record holds no maps of single heads.
    """
    maps = rearrange(measured(grounding, HEAD_MAPS), "p l n k -> p (l n) k")
    place = {"view": grounding.view, "size": grounding.image_size, "remove_corners": grounding.options.remove_corners}
    known: dict[tuple[int, ...], torch.Tensor] = {}
    for heads in sets:
        key = tuple(sorted(heads))
        if key not in known:
            known[key] = prompt_points(maps[:, list(key)].mean(1), **place)
    return torch.stack([known[tuple(sorted(heads))] for heads in sets], dim=1).numpy()


def selection_table(
    scores: HeadScores,
    choice: Choice,
    records: Iterable[tuple[str, Grounding]],
    *,
    top: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """PAcc of the chosen heads on the images on which they were not chosen, and the difference from all heads' mean.

    Args:
        scores, choice: of `head_scores` and `choose_heads`.
        records: the same records again, in the same order.
        top: heads whose mean map points, too, where records hold the maps of every head.
        seed: of the bootstrap over images, which takes the choices as they are.

    Returns:
        `analysis.scoring.comparison.compare_ways` with the heads that were chosen, in how many parts, in `chosen`.
    """
    hits, m = scores.hits, scores.n_heads
    fold = choice.fold[scores.places][scores.matched]
    ways = {ALL: Way(hits, m)}
    chosen = {ALL: "all"}
    columns = {AVERAGE: hits.values[:, :m].mean(axis=1)} | {
        f"{name}, 1 head": hits.values[np.arange(len(fold)), ranked[fold, 0]] for name, ranked in choice.ranked.items()
    }
    frame = scores.frame[scores.matched]
    for name, values in columns.items():
        ways[name] = Way(phrase_scores(frame, values[:, None], scores.dataset))
        chosen[name] = "each" if name == AVERAGE else _told(scores, choice.ranked[name.removesuffix(", 1 head")][:, :1])
    for name, way in _top(scores, choice, records, min(top, m)).items():
        ways[f"{name}, {top} heads"] = way
        chosen[f"{name}, {top} heads"] = _told(scores, choice.ranked[name][:, :top])
    table = compare_ways(ways, ALL, name="heads", seed=seed)
    return table.assign(chosen=table["heads"].map(chosen))


def reading(table: pd.DataFrame, correlations: pd.DataFrame) -> str:
    """Whether heads chosen without annotations beat the mean over all on other images, in the measured numbers."""
    if table["PAcc"].isna().all():
        return "No phrase matched an annotated category, so heads cannot be compared here."
    lines = [
        f"{row.statistic}: rank correlation with PAcc {row.correlation:.2f} [{row.low:.2f}, {row.high:.2f}] "
        f"over {row.n_heads} heads"
        for row in correlations.itertuples()
    ]
    mean = table.set_index("heads").loc[ALL]
    lines.append(f"On held-out images the mean of all heads points right in {mean['PAcc']:.1f} %.")
    for row in table[~table["heads"].isin([ALL, AVERAGE])].to_dict("records"):
        apart = Interval(*(row[name] / 100 for name in ("difference", "difference_low", "difference_high")))
        lines.append(f"  {row['heads']}: {row['PAcc']:.1f} %, {apart.points()}")
    return "\n".join(lines)


def _top(scores: HeadScores, choice: Choice, records: Iterable[tuple[str, Grounding]], top: int) -> dict[str, Way]:
    """The mean map of each criterion's best heads; none where a record does not hold the maps of every head.

    Raises:
        GroundingError: the records are others than those that were scored.
    """
    places = {image.id: place for place, image in enumerate(scores.dataset.images)}
    points = [np.zeros((0, len(choice.ranked), 2))]
    for record_id, grounding in records:
        if HEAD_MAPS not in grounding.measured:
            return {}
        fold = choice.fold[places[scores.dataset.image(record_id).id]]
        points.append(chosen_points(grounding, [ranked[fold, :top].tolist() for ranked in choice.ranked.values()]))
    together = np.concatenate(points)
    if len(together) != len(scores.frame):
        raise GroundingError(
            f"{len(scores.frame)} phrases were scored and these records have {len(together)}; give the same records"
        )
    found = score_points(Phrases(scores.frame, together), scores.dataset)
    return {name: Way(found, column) for column, name in enumerate(choice.ranked)}


def _told(scores: HeadScores, heads: Int[np.ndarray, "folds s"]) -> str:
    """The heads of all parts, the most frequent first, with their number of parts where it is not all."""
    often = Counter(heads.ravel().tolist()).most_common()
    return "; ".join(
        scores.name(head) + ("" if times == len(heads) else f" ({times} of {len(heads)})") for head, times in often
    )
