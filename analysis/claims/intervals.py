"""Shares and their differences, with intervals over training seeds and over images: a hierarchical bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from analysis.scoring.metrics import Interval, percentile_interval, resamples
from core.errors import GroundingError


@dataclass(frozen=True, eq=False)
class Counts:
    """A model's numerators and denominators (hits and phrases, say), [seeds, images], by the seeds of its training."""

    part: Shaped[np.ndarray, "seeds images"]
    whole: Shaped[np.ndarray, "seeds images"]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.part.shape != self.whole.shape or self.part.ndim != 2 or len(self.part) != len(self.seeds):
            raise GroundingError(
                f"counts of shapes {self.part.shape} and {self.whole.shape} for the seeds {list(self.seeds)}; both "
                "must be [seeds, images]"
            )

    def of(self, seeds: tuple[int, ...]) -> Counts:
        """Those of some of the seeds, in their order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Counts(self.part[rows], self.whole[rows], tuple(seeds))

    def where(self, chosen: Bool[np.ndarray, "seeds images"]) -> Counts:
        """The same with nothing counted elsewhere."""
        return Counts(self.part * chosen, self.whole * chosen, self.seeds)


def pooled_share(counts: Counts, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Sum of parts over sum of wholes, of all seeds and images, with an interval over both; see `paired_difference`."""
    return _interval([counts], lambda share: share, draws, level, seed)


def paired_difference(x: Counts, y: Counts, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Share of x minus share of y, over the seeds that both have, with an interval over seeds and images.

    In every draw both models have the same images and the same seeds: runs of one seed began alike and saw the same
    samples in the same order. Of n seeds n - 1 are drawn, which makes a mean's variance over the draws the unbiased
    estimate; of three seeds, three draws would show two thirds of it. With a single seed the interval is over images
    alone and says nothing of other trainings.

    Raises:
        GroundingError: other numbers of images, or no seed in common.

    Source: Rao and Wu 1988, "Resampling inference with complex survey data", for n - 1.
    """
    if x.part.shape[1] != y.part.shape[1]:
        raise GroundingError(
            f"{x.part.shape[1]} and {y.part.shape[1]} images cannot be paired; measure both on the same"
        )
    common = tuple(sorted(set(x.seeds) & set(y.seeds)))
    if not common:
        raise GroundingError(
            f"the seeds {list(x.seeds)} and {list(y.seeds)} have none in common, so there are no pairs"
        )
    return _interval([x.of(common), y.of(common)], lambda first, second: first - second, draws, level, seed)


def _interval(models: list[Counts], statistic, draws: int, level: float, seed: int) -> Interval:
    n_seeds, n_images = models[0].part.shape
    generator = np.random.default_rng([seed, n_seeds])
    chosen = generator.multinomial(max(1, n_seeds - 1), np.full(n_seeds, 1 / n_seeds), size=draws)
    images = resamples(n_images, draws, seed)
    once = np.ones((1, n_seeds)), np.ones((1, n_images))
    value = float(statistic(*(_shares(each, *once) for each in models))[0])
    return percentile_interval(value, statistic(*(_shares(each, chosen, images) for each in models)), level=level)


def _shares(
    counts: Counts, seeds: Shaped[np.ndarray, "draws seeds"], images: Shaped[np.ndarray, "draws images"]
) -> Float[np.ndarray, " draws"]:
    part, whole = (np.einsum("ds,sn,dn->d", seeds, each, images, optimize=True) for each in (counts.part, counts.whole))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
