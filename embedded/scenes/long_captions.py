"""Descriptions as long as LLaVA's, 80 to 150 tokens: list, places, relations, sizes, colours, background, a closing.

They have a random stream of their own, so a scene's other texts do not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from embedded.scenes.captions import CLOSINGS, NUMBERS, joined, mention, name_of, place, with_article
from embedded.scenes.pictures import SHAPES
from embedded.scenes.scene_object import SceneObject
from embedded.scenes.scenes import SPLITS, planned_objects

SHORTEST, LONGEST = 80, 150  # tokens, where every word and every mark is one
STREAM = 77  # of the random numbers


def long_caption(split: str, index: int, *, size: tuple[int, int] | None = None, seed: int = 0) -> str:
    """The long description of `make_scene(split, index, size=size, seed=seed)`, without drawing the scene.

    Args:
        size: (H, W) in pixels, which decide where things lie; by default that of the training rendering of this number.
    """
    objects, texture, ground = planned_objects(split, index, size=size or SHAPES[index % len(SHAPES)], seed=seed)
    rng = np.random.default_rng([seed, SPLITS.index(split), index, STREAM])
    return describe_at_length(rng, objects, texture, ground)


def describe_at_length(rng: np.random.Generator, objects: Sequence[SceneObject], texture: str, ground: str) -> str:
    """A description of `SHORTEST` to `LONGEST` words and marks: what there is, where, how it relates, how it looks.

    The place of each object is always told; of relations, sizes and colours as many as a length drawn at random holds.
    """
    background = with_article(f"{texture} {ground} background")
    opening = str(rng.choice(["The image features", "The image shows"]))
    begin = [f"{opening} {joined([mention(thing) for thing in objects])} on {background}."]
    begin += [_placed(rng, number, objects) for number in range(len(objects))]
    end = [str(rng.choice(CLOSINGS))]
    more = _more(rng, objects, texture, ground)
    target = int(rng.integers(SHORTEST + 10, LONGEST - 5))
    chosen: list[tuple[int, str]] = []
    for number in rng.permutation(len(more)):
        length = count_words([*begin, *(text for _, text in chosen), *end])
        added = length + count_words([more[number]])
        if length < SHORTEST or added <= target:
            chosen.append((int(number), more[number]))
    return " ".join([*begin, *(text for _, text in sorted(chosen)), *end])


def count_words(sentences: Sequence[str]) -> int:
    """Words and punctuation marks: what the embedded tokenizer makes of texts whose words it knows."""
    return sum(len(re.findall(r"\w+|[^\w\s]", text)) for text in sentences)


def _placed(rng: np.random.Generator, number: int, objects: Sequence[SceneObject]) -> str:
    """Where an object is, in one sentence; later ones are joined to what was said."""
    thing = objects[number]
    said = (
        f"{name_of(thing, objects, with_colour=rng.random() < 0.4)} {rng.choice(['is', 'is located'])} {place(thing)}"
    )
    if number and rng.random() < 0.35:
        return f"In addition, the {said}."
    return f"The {said}."


def _more(rng: np.random.Generator, objects: Sequence[SceneObject], texture: str, ground: str) -> list[str]:
    """What else can be said, in the order in which it is."""
    alone = len(objects) == 1
    number = NUMBERS[len(objects)]
    return [
        *_relations(rng, objects),
        *_sizes(rng, objects),
        *_colours(rng, objects),
        "In total, there is one object in the image."
        if alone
        else f"In total, there are {number} objects in the image.",
        *(_about_one(objects[0]) if alone else ()),
        f"The arrangement of the {'scene' if alone else 'objects'} is simple and clear.",
        f"The background of the image is {texture} and {ground}.",
        f"The {texture} pattern covers the whole image.",
        "Nothing else can be seen in the background.",
    ]


def _relations(rng: np.random.Generator, objects: Sequence[SceneObject]) -> list[str]:
    """How each object stands to one further left, across or up and down."""
    told = []
    for number, thing in enumerate(objects[1:], start=1):
        before = objects[int(rng.integers(number))]
        first, second = (name_of(each, objects) for each in (thing, before))
        told.append(f"The {first} is to the right of the {second}.")
        drop = thing.centre[1] - before.centre[1]
        if abs(drop) > 0.2:
            told.append(f"In addition, the {first} is {'below' if drop > 0 else 'above'} the {second}.")
    return told


def _sizes(rng: np.random.Generator, objects: Sequence[SceneObject]) -> list[str]:
    told = []
    for first, second in pairwise(objects):
        if rng.random() < 0.5:
            first, second = second, first
        if abs(first.scale - second.scale) > 0.04:
            than = "larger" if first.scale > second.scale else "smaller"
            told.append(f"The {name_of(first, objects)} is {than} than the {name_of(second, objects)}.")
    if len(objects) > 2:
        largest = max(objects, key=lambda thing: thing.scale)
        told.append(f"The largest object in the image is the {name_of(largest, objects)}.")
    return told


def _colours(rng: np.random.Generator, objects: Sequence[SceneObject]) -> list[str]:
    categories = [thing.category for thing in objects]
    chosen = [thing for thing in objects if categories.count(thing.category) == 1]
    chosen = [chosen[number] for number in rng.permutation(len(chosen))[:2]]
    clauses = [f"the {thing.category} is {thing.colour}" for thing in chosen]
    text = ", and ".join(clauses)
    return [f"T{text[1:]}."] if text else []


def _about_one(thing: SceneObject) -> list[str]:
    return [
        f"The {thing.category} is {'large' if thing.scale > 0.41 else 'small'}.",
        f"There are no other objects near the {thing.category}.",
        f"The {thing.colour} {thing.category} is clearly visible against the background.",
        f"The only object in the image is the {thing.category}.",
        f"The {thing.category} stands alone in the scene.",
        f"In addition, the background is visible behind the {thing.category}.",
    ]
