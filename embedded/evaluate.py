"""Measures the embedded models on held-out scenes (split `test`), for their cards."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from core.lmm import LMM
from core.masks import Segmenter
from core.pipeline import Grounding, ground
from core.rle import decode_rle
from embedded.scenes.captions import DESCRIBE, place, told_places
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS, Scene, make_scene

_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(CATEGORIES)})\b")


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
    for index in tqdm(range(scenes), desc="measuring LLaVA", mininterval=5):
        scene = make_scene("test", index, seed=seed)
        generation = lmm.generate(scene.image, DESCRIBE, max_new_tokens=160)
        said, true = set(_PAIR.findall(generation.text)), {(thing.colour, thing.category) for thing in scene.objects}
        tally.update(said=len(said), true=len(true), right=len(said & true), exact=int(said == true))
        tally.update(_places(scene, generation.text))
        grounded = ground(generation, scene.image, segmenter=segmenter, nlp=nlp)
        plain = ground(generation, scene.image, segmenter=None, nlp=nlp, normalization="none")
        tally.update(_score(scene, grounded, plain))
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


def _score(scene: Scene, grounded: Grounding, plain: Grounding) -> Counter[str]:
    totals: Counter[str] = Counter()
    named: set[str] = set()
    for number, phrase in enumerate(grounded.phrases):
        category = phrase.root.lower()
        things = [thing.mask for thing in scene.objects if thing.category == category]
        if not things:
            continue
        union = np.any(things, axis=0)
        mask = decode_rle(grounded.masks[number][0]).numpy()
        hit, first = _inside(union, grounded.points[number]), category not in named
        named.add(category)
        totals.update(
            phrases=1,
            hits=hit,
            first=first,
            first_hits=hit and first,
            raw_hits=_inside(union, plain.points[number]),
            area=float(union.mean()),
            iou=max(float((mask & thing).sum() / max(1, (mask | thing).sum())) for thing in things),
        )
    return totals


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
