"""Measures the embedded models on held-out scenes (split `test`), for their cards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from core.generation import Generation
from core.lmm import LMM
from core.masks import Segmenter
from core.pipeline import Grounding, ground
from core.rle import decode_rle
from embedded.scenes.captions import DESCRIBE, place, told_places
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS, Scene, make_scene

_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(CATEGORIES)})\b")


@dataclass(frozen=True, eq=False)
class Described:
    """A held-out scene, what a model said of it, and that answer's phrases with equation 3 and without (`plain`)."""

    scene: Scene
    generation: Generation
    grounded: Grounding
    plain: Grounding


def described_scenes(
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Any,
    *,
    scenes: int,
    seed: int = 0,
    prompt: str = DESCRIBE,
    max_new_tokens: int = 160,
    batch: int = 1,
) -> Iterator[Described]:
    """The first `scenes` scenes of the split `test`, described and grounded one after the other.

    Args:
        segmenter: None stops at the points.
        prompt: that asks for a description.
        batch: scenes that are answered together.
    """
    with tqdm(total=scenes, desc="measuring LLaVA", mininterval=5) as progress:
        for start in range(0, scenes, batch):
            drawn = [make_scene("test", index, seed=seed) for index in range(start, min(start + batch, scenes))]
            pictures = [scene.image for scene in drawn] if batch > 1 else drawn[0].image
            generations = lmm.generate(pictures, prompt, max_new_tokens=max_new_tokens)
            for scene, generation in zip(drawn, generations if batch > 1 else [generations], strict=True):
                grounded = ground(generation, scene.image, segmenter=segmenter, nlp=nlp)
                plain = ground(generation, scene.image, segmenter=None, nlp=nlp, normalization="none")
                yield Described(scene, generation, grounded, plain)
                progress.update()


def count_scene(described: Described) -> Counter[str]:
    """What `measure_llava` sums over scenes: counts, and sums over phrases.

    `said`, `true`, `right`: (colour, category) pairs of the answer, of the scene, of both; `exact`: 1 where they are
    the same; `places`, `places_right`; `phrases` whose head noun is a category that stands in the scene; of their
    points `hits` on it with equation 3, `raw_hits` without; `first`, `first_hits`: phrases that name their category for
    the first time; `area`: of their categories, as shares of the picture; `iou`: of their masks, where there are masks.
    """
    scene, text = described.scene, described.generation.text
    said, true = set(_PAIR.findall(text)), {(thing.colour, thing.category) for thing in scene.objects}
    counts = Counter(said=len(said), true=len(true), right=len(said & true), exact=int(said == true))
    counts.update(_places(scene, text))
    counts.update(_score(described))
    return counts


def measure_llava(lmm: LMM, segmenter: Segmenter, nlp: Any, *, scenes: int, seed: int = 0) -> dict[str, float | int]:
    """Descriptions and their grounding on the first `scenes` scenes of the split `test`.

    Returns shares in 0..1: `pair_precision` and `pair_recall` of the (colour, category) pairs that a description names;
    `places_right` of what it says of an object's place ("on the left side of the image") where the object is there;
    `point_accuracy` (PAcc: prompt points inside the union of the masks of their category) with equation 3,
    `point_accuracy_first` where an answer names the category for the first time, `point_accuracy_again` where it names
    it again; `point_accuracy_raw` without equation 3; `random_point` (the expected accuracy of a random pixel on the
    same phrases, exact); `mask_iou` (mean IoU of the phrase's mask and the best object of its category); and counts.
    Phrases are those whose head noun is a category that stands in the scene.
    """
    tally: Counter[str] = Counter()
    for described in described_scenes(lmm, segmenter, nlp, scenes=scenes, seed=seed):
        tally.update(count_scene(described))
    phrases = max(1, tally["phrases"])
    return {
        "scenes": scenes,
        "pair_precision": tally["right"] / max(1, tally["said"]),
        "pair_recall": tally["right"] / max(1, tally["true"]),
        "all_pairs_right": tally["exact"] / scenes,
        "places_right": tally["places_right"] / max(1, tally["places"]),
        "phrases": tally["phrases"],
        "point_accuracy": tally["hits"] / phrases,
        "point_accuracy_first": tally["first_hits"] / max(1, tally["first"]),
        "point_accuracy_again": (tally["hits"] - tally["first_hits"]) / max(1, tally["phrases"] - tally["first"]),
        "point_accuracy_raw": tally["raw_hits"] / phrases,
        "random_point": tally["area"] / phrases,
        "mask_iou": tally["iou"] / phrases,
    }


def _places(scene: Scene, text: str) -> dict[str, int]:
    true = {(thing.category, place(thing)) for thing in scene.objects}
    named = {category for category, _ in true}
    said = [pair for pair in told_places(text) if pair[0] in named]
    return {"places": len(said), "places_right": sum(pair in true for pair in said)}


def scored_phrases(described: Described) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the phrase, bool [H, W] of its category) of every phrase whose category stands in the scene."""
    for number, phrase in enumerate(described.grounded.phrases):
        things = [thing.mask for thing in described.scene.objects if thing.category == phrase.root.lower()]
        if things:
            yield number, np.any(things, axis=0)


def _score(described: Described) -> Counter[str]:
    totals: Counter[str] = Counter()
    named: set[str] = set()
    grounded, plain = described.grounded, described.plain
    for number, union in scored_phrases(described):
        category = grounded.phrases[number].root.lower()
        hit, first = _inside(union, grounded.points[number]), category not in named
        named.add(category)
        totals.update(
            phrases=1,
            hits=hit,
            first=first,
            first_hits=hit and first,
            raw_hits=_inside(union, plain.points[number]),
            area=float(union.mean()),
        )
        if grounded.segmenter is not None:
            totals["iou"] += _best_iou(described.scene, category, decode_rle(grounded.masks[number][0]).numpy())
    return totals


def _best_iou(scene: Scene, category: str, mask: np.ndarray) -> float:
    things = [thing.mask for thing in scene.objects if thing.category == category]
    return max(float((mask & thing).sum() / max(1, (mask | thing).sum())) for thing in things)


def measure_sam(segmenter: Segmenter, *, scenes: int, seed: int = 0) -> dict[str, float | int]:
    """One random point in every object: mean IoU with it of each of the three masks and of the best-scored one."""
    rng = np.random.default_rng(seed)
    ious, chosen = [], []
    for index in tqdm(range(scenes), desc="measuring SAM", mininterval=5):
        scene = make_scene("test", index, seed=seed)
        things = [thing.mask for thing in scene.objects if thing.mask.sum() > 16]
        if not things:
            continue
        places = [np.argwhere(mask)[rng.integers(mask.sum())] for mask in things]
        segmenter.set_image(scene.image)
        found = segmenter.predict(torch.tensor([[x + 0.5, y + 0.5] for y, x in places], dtype=torch.float32))
        for masks, scores, thing in zip(found.masks.numpy(), found.scores, things, strict=True):
            ious.append([(mask & thing).sum() / (mask | thing).sum() for mask in masks])
            chosen.append(ious[-1][int(scores.argmax())])
    means = np.mean(ious, axis=0)
    return {
        "scenes": scenes,
        "objects": len(ious),
        **{f"iou_mask_{number}": float(value) for number, value in enumerate(means)},
        "iou_last": float(means[-1]),
        "iou_best_scored": float(np.mean(chosen)),
        "share_last_above_0.75": float(np.mean(np.array(ious)[:, -1] > 0.75)),
    }


def _inside(mask: np.ndarray, point: torch.Tensor) -> bool:
    x, y = (int(value) for value in point)
    return bool(mask[y, x])
