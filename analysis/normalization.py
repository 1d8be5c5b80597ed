"""What equation 3 does (Figure 6 of the paper): every token's map before and after, and PAcc by normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from analysis.captured import recorded_generation
from analysis.scoring.coco import CocoDataset
from analysis.scoring.comparison import Way, compare_ways
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import Interval
from analysis.scoring.phrases import difference, match_phrases, score_chance, score_points
from core.attention import normalize, to_grid
from core.generation import Generation
from core.geometry import View
from core.options import GroundOptions
from core.pipeline import Grounding, phrase_points

KINDS = {
    "none": "none",
    "sequence": "mean over the answer (equation 3)",
    "words": "mean over the answer's words, without special tokens",
    "ratio": "ratio to the mean over the answer",
    "prompt": "mean over the prompt's words",
}
"""What is taken from the maps, by the name of the normalisation."""


@dataclass(frozen=True)
class TokenMaps:
    """The visual grids of every output token that shows in the answer.

    Attributes:
        tokens: the t tokens' text, e.g. "The", "image".
        before: float32 [t, h, w], raw reduced attention.
        after: float32 [t, h, w], minus the mean over the whole answer (eq. 3).
        mean: float32 [h, w], that mean, over all output tokens including those that do not show (end of sequence).
    """

    tokens: tuple[str, ...]
    before: Float[Tensor, "t h w"]
    after: Float[Tensor, "t h w"]
    mean: Float[Tensor, "h w"]


def token_maps(generation: Generation, *, view: View | None = None, limit: int | None = None) -> TokenMaps:
    """Maps of the tokens that show in the answer, in reading order.

    Args:
        generation: the answer.
        view: the grid; by default the generation's last.
        limit: keep the first so many tokens; the mean is over the whole answer all the same.

    Source: Figure 6.
    """
    view = generation.views[-1] if view is None else view
    shown = [index for index, (start, end) in enumerate(generation.token_spans.tolist()) if end > start][:limit]
    before = to_grid(generation.attention, view)
    after = to_grid(normalize(generation.attention), view)
    tokens = tuple(_printable(generation.text[slice(*generation.token_spans[index].tolist())]) for index in shown)
    return TokenMaps(tokens, before[shown], after[shown], reduce(before, "t h w -> h w", "mean"))


def _printable(token: str) -> str:
    return "".join(character if character.isprintable() else "·" for character in token.strip())


def maps_reading(maps: TokenMaps) -> str:
    """One sentence on whether some cells win at every token, before and after."""
    if len(maps.tokens) == 0:
        return "The answer is empty, so there are no maps to read."
    shares = []
    for kind in (maps.before, maps.after):
        peaks = rearrange(kind, "t h w -> t (h w)").argmax(-1)
        shares.append(100 * float(peaks.bincount().max()) / len(peaks))
    return (
        f"Before, one and the same cell is the brightest in {shares[0]:.0f} % of the {len(maps.tokens)} maps; "
        f"after, no cell is the brightest in more than {shares[1]:.0f} %."
    )


def kinds_for(options: GroundOptions) -> tuple[str, ...]:
    """The normalisations that records under these options can be compared by: the map of the prompt is known only of
    the mean over all heads.
    """
    return tuple(kind for kind in KINDS if kind != "prompt" or not options.selects_heads)


def points_by_normalization(
    grounding: Grounding, kinds: Sequence[str] = ("none", "sequence")
) -> Float[np.ndarray, "p m 2"]:
    """Every phrase's prompt point under each normalisation, recomputed from the recorded maps under the record's other
    options.

    Returns:
        (x, y) in pixels of the original image, of the kinds in their order.

    Raises:
        GroundingError: the record does not hold the maps that its options read, or none of its prompt.
    """
    generation = recorded_generation(grounding, grounding.options)
    options = replace(grounding.options, layers=None, heads=None)
    points = [phrase_points(generation, grounding.phrases, options=options, normalization=kind) for kind in kinds]
    return torch.stack(points, dim=1).numpy()


@dataclass(frozen=True)
class NormalizationEffect:
    """PAcc with and without eq. 3 on the same phrases; intervals over images, the difference paired.

    Attributes:
        variants: every normalisation beside eq. 3, `analysis.scoring.comparison.compare_ways` in the rows' words.
    """

    without: Interval
    with_eq3: Interval
    difference: Interval
    chance: float
    n_phrases: int
    n_images: int
    variants: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """In percent: without, with, with minus without, and a random point's expectation for the same phrases."""
        rows = [
            ("without normalisation", self.without),
            ("with normalisation (eq. 3)", self.with_eq3),
            ("with minus without (paired)", self.difference),
            ("random point, same phrases (expected)", Interval(self.chance, float("nan"), float("nan"))),
        ]
        values = [(name, 100 * each.value, 100 * each.low, 100 * each.high) for name, each in rows]
        return pd.DataFrame(values, columns=["maps", "PAcc", "low", "high"])


def normalization_effect(
    records: Iterable[tuple[str, Grounding]],
    dataset: CocoDataset,
    matcher: CategoryMatcher,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    seed: int = 0,
) -> NormalizationEffect:
    """PAcc under every normalisation for the phrases that match an annotated category, as in the pilot study.

    All numbers are nan where no phrase matched.

    Args:
        records: (image id, grounding) pairs.
        dataset, matcher: the ground truth, and what matches phrases to its categories.
        kinds: normalisations, "none" and "sequence" among them; see `kinds_for`.
        seed: of the bootstrap.
    """
    found = match_phrases(records, dataset, matcher, points=lambda record: points_by_normalization(record, kinds))
    scores = score_points(found, dataset)
    ways = {KINDS[kind]: Way(scores, column) for column, kind in enumerate(kinds)}
    without, with_eq3 = kinds.index("none"), kinds.index("sequence")
    return NormalizationEffect(
        without=scores.interval(without, seed=seed),
        with_eq3=scores.interval(with_eq3, seed=seed),
        difference=difference(scores, scores, (without, with_eq3), seed=seed),
        chance=float(score_chance(found, dataset).means[0]),
        n_phrases=len(scores.values),
        n_images=len(dataset),
        variants=compare_ways(ways, KINDS["sequence"], name="taken from the maps", seed=seed),
    )


def reading(effect: NormalizationEffect) -> str:
    """One sentence that says what normalisation did to PAcc here, in the measured numbers."""
    if effect.n_phrases == 0:
        return (
            f"No phrase matched an annotated category in {effect.n_images} images, so there is nothing to compare here."
        )
    low, high = effect.difference.low, effect.difference.high
    verdict = "raises" if low > 0 else "lowers" if high < 0 else "does not clearly change"
    return (
        f"On {effect.n_phrases} matched phrases of {effect.n_images} images, normalisation {verdict} point accuracy: "
        f"{effect.without.percent()} without, {effect.with_eq3.percent()} with, "
        f"difference {effect.difference.points()} (paired)."
    )
