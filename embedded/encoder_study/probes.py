"""What a linear probe reads from the frozen features: which colours, categories and backgrounds a scene has.

A probe gives every cell of the feature grid a score for each word, and a scene a soft maximum over its cells; it
learns from the words of the training scenes' captions and is measured on held-out scenes. It says what the features
hold, whatever the language model makes of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from core.atomic import write_atomically
from embedded.encoder_study.two_stages import TrainingData
from embedded.encoder_study.variants import VARIANTS, Variant, find_variant
from embedded.recipes.fitting import Fit, fit, step_generator
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.pictures import TAGS, multi_hot
from embedded.scenes.scenes import COLOURS, GROUNDS, TEXTURES

logger = logging.getLogger(__name__)
WORDS: Mapping[str, Sequence[str]] = {
    "colour": COLOURS,
    "category": CATEGORIES,
    "texture": TEXTURES,
    "ground": GROUNDS,
}
FILE = "probes.json"


@dataclass(frozen=True)
class ProbeRecipe:
    """What decides the result of a probe; the scenes are the first of the training split."""

    scenes: int = 7_000
    steps: int = 800
    batch: int = 128
    learning_rate: float = 1e-2
    seed: int = 0


def probed_variants() -> list[str]:
    """Names of the variants whose features do not depend on what is learned."""
    return [name for name, one in VARIANTS.items() if not (one.implicit_captioner or one.positional_encoding)]


def run_probes(
    work: Path, data: TrainingData, names: Iterable[str] | None = None, *, recipe: ProbeRecipe | None = None
) -> Path:
    """Probes the variants' features; those that `work` / "probes.json" holds for the same recipe are left as they are.

    Args:
        names: of variants; by default all of `probed_variants`.
    """
    recipe, file = recipe or ProbeRecipe(), work / FILE
    train, held_out = range(recipe.scenes), data.held_out
    for name in probed_variants() if names is None else names:
        if any(row["variant"] == name for row in _finished(work, recipe)):
            continue
        grids = [_grids(data, find_variant(name), scenes) for scenes in (train, held_out)]
        words = [multi_hot([data.tags[number] for number in scenes]) for scenes in (train, held_out)]
        found = probe(grids[0], words[0], grids[1], words[1], recipe, state=work / f"probe_{name}.tmp.pt")
        row = {"variant": name, "recipe": asdict(recipe), "held_out_scenes": len(held_out), **found}
        rows = [*_finished(work, recipe), row]  # read anew: another process may have probed another variant meanwhile
        write_atomically(file, (json.dumps(rows, indent=1) + "\n").encode())
        logger.info("probe of %s: %s", name, found["mean_average_precision"])
    return file


def _finished(work: Path, recipe: ProbeRecipe) -> list[dict[str, Any]]:
    return [row for row in read_probes(work) if row["recipe"] == asdict(recipe)]


def read_probes(work: Path) -> list[dict[str, Any]]:
    """The finished probes of a work folder."""
    file = work / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def probe(
    features: Float[Tensor, "n k c"],
    words: Float[Tensor, "n t"],
    held_out: Float[Tensor, "m k c"],
    wanted: Float[Tensor, "m t"],
    recipe: ProbeRecipe,
    *,
    state: Path,
) -> dict[str, Any]:
    """Trains a probe and measures it.

    Args:
        features, held_out: of n and m scenes, c channels in each of k cells.
        words, wanted: 1 where a caption says the word of `embedded.scenes.pictures.TAGS`.
        state: file of the training state.

    Returns:
        For each kind of word, "mean_average_precision" over its words in the held-out scenes, and "chance", the mean
        share of scenes that have a word: what random scores get.
    """
    return precisions(fit_probe(features, words, recipe, state=state)(held_out), wanted)


@dataclass(frozen=True)
class Probe:
    """A linear probe: called with features [n, k, c] it scores every word for every scene, [n, t]."""

    head: nn.Linear
    mean: Float[Tensor, " c"]
    spread: Float[Tensor, " c"]

    def __call__(self, rows: Float[Tensor, "n k c"]) -> Float[Tensor, "n t"]:
        return torch.logsumexp(self.head((rows.float() - self.mean) / self.spread), dim=1) - log(rows.shape[1])


def fit_probe(
    features: Float[Tensor, "n k c"], words: Float[Tensor, "n t"], recipe: ProbeRecipe, *, state: Path
) -> Probe:
    """Trains a probe on features and the words of the scenes' captions."""
    torch.manual_seed(recipe.seed)
    spread = features.float().std((0, 1)).clamp(min=1e-6)
    found = Probe(nn.Linear(features.shape[-1], words.shape[-1]), features.float().mean((0, 1)), spread)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(features), (recipe.batch,), generator=step_generator(recipe.seed, step))
        return binary_cross_entropy_with_logits(found(features[chosen]), words[chosen])

    options = Fit(recipe.steps, recipe.learning_rate, weight_decay=0.01)
    fit("probe", {"head": found.head}, loss, options, state=state, log_every=recipe.steps)
    found.head.requires_grad_(False)
    return found


def precisions(found: Float[Tensor, "m t"], wanted: Float[Tensor, "m t"]) -> dict[str, dict[str, float]]:
    """`probe`'s result for scores of held-out scenes."""
    result: dict[str, dict[str, float]] = {"mean_average_precision": {}, "chance": {}}
    for kind, names in WORDS.items():
        columns = [TAGS.index(name) for name in names if wanted[:, TAGS.index(name)].any()]
        each = [average_precision(found[:, column], wanted[:, column]) for column in columns]
        result["mean_average_precision"][kind] = round(sum(each) / len(each), 4)
        result["chance"][kind] = round(wanted[:, columns].mean().item(), 4)
    return result


def average_precision(scores: Float[Tensor, " n"], wanted: Float[Tensor, " n"]) -> float:
    """Mean of the precision at every hit of the ranking by score (area under the precision-recall curve)."""
    hits = wanted[scores.argsort(descending=True, stable=True)]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return ((precision * hits).sum() / hits.sum()).item()


def _grids(data: TrainingData, variant: Variant, scenes: range) -> Tensor:
    frozen = data.cache.frozen(variant, scenes)
    features = frozen["diffusion" if variant.diffusion else "features"]
    return features.flatten(1, -2)
