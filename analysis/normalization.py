"""What equation 3 does (Figure 6 of the paper): every token's map before and after, and PAcc with and without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from analysis.scoring.coco import CocoDataset
from analysis.scoring.matching import THRESHOLD, CategoryMatcher
from analysis.scoring.metrics import Interval, difference_interval, per_image, point_hits, ratio_interval
from analysis.scoring.random_point import phrase_chances
from core.attention import NORMALIZATIONS, normalize, to_grid
from core.generation import Generation
from core.geometry import View
from core.pipeline import phrase_maps
from core.points import prompt_points


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


def points_by_normalization(records: Iterable[tuple[str, Any]], *, aggregation: str = "mean") -> pd.DataFrame:
    """Every phrase's prompt point with eq. 3 and without, recomputed from the recorded maps.

    Returns:
        One row per phrase: `image_id`, `phrase` (number), `root`, `text`, and x, y of each kind: `x_sequence`,
        `y_sequence`, `x_none`, `y_none`; pixels of the original image.
    """
    rows = []
    for record_id, grounding in records:
        generation = grounding.generation
        found = {}
        for kind in NORMALIZATIONS:
            maps = phrase_maps(generation, grounding.phrases, normalization=kind, aggregation=aggregation)
            found[kind] = prompt_points(maps, generation.views[-1], grounding.image_size).tolist()
        for number, phrase in enumerate(grounding.phrases):
            row = {"image_id": record_id, "phrase": number, "root": phrase.root, "text": phrase.text}
            for kind in NORMALIZATIONS:
                row[f"x_{kind}"], row[f"y_{kind}"] = found[kind][number]
            rows.append(row)
    columns = ["image_id", "phrase", "root", "text", *(f"{axis}_{kind}" for kind in NORMALIZATIONS for axis in "xy")]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class NormalizationEffect:
    """PAcc with and without eq. 3 on the same phrases; intervals over images, the difference paired."""

    without: Interval
    with_eq3: Interval
    difference: Interval
    chance: float
    n_phrases: int
    n_images: int

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
    points: pd.DataFrame,
    dataset: CocoDataset,
    nlp: Any,
    *,
    match_by: str = "head",
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> NormalizationEffect:
    """PAcc of both kinds of points for the phrases that match an annotated category, as in the pilot study.

    All numbers are nan where no phrase matched.
    """
    matched = _match(points, dataset, CategoryMatcher(nlp, by=match_by, threshold=threshold))
    sums = {}
    for kind in NORMALIZATIONS:
        where = matched.rename(columns={f"x_{kind}": "x", f"y_{kind}": "y"})
        hits = pd.Series(point_hits(where, dataset), index=matched.index)
        sums[kind], counts = per_image(hits, matched["image_id"], dataset)
    return NormalizationEffect(
        without=ratio_interval(sums["none"], counts, seed=seed),
        with_eq3=ratio_interval(sums["sequence"], counts, seed=seed),
        difference=difference_interval((sums["none"], sums["sequence"]), (counts, counts), seed=seed),
        chance=float(phrase_chances(matched, dataset).mean()),
        n_phrases=len(matched),
        n_images=len(dataset),
    )


def _match(points: pd.DataFrame, dataset: CocoDataset, matcher: CategoryMatcher) -> pd.DataFrame:
    image_ids = [dataset.image(record_id).id for record_id in points["image_id"]]
    found = [
        matcher.best(phrase, dataset.annotated(image_id))[0]
        for phrase, image_id in zip(points.itertuples(index=False), image_ids, strict=True)
    ]
    frame = points.assign(image_id=image_ids, category_id=pd.array(found, dtype="Int64"))
    frame = frame[frame["category_id"].notna()]
    return frame.assign(category_id=frame["category_id"].astype(int))


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
