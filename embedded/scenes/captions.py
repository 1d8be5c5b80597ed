"""What is said about a scene: a description in LLaVA's manner, and questions with their answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scene_object import SceneObject

DESCRIBE = "Describe the image in detail."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
CLOSINGS = (
    "The overall scene is simple and colorful.",
    "The objects are clearly visible against the background.",
    "The scene is calm, and nothing else can be seen.",
)

PLACES = (
    "in the center of the image",
    "on the left side of the image",
    "on the right side of the image",
    "near the top of the image",
    "near the bottom of the image",
    "in the top left corner of the image",
    "in the top right corner of the image",
    "in the bottom left corner of the image",
    "in the bottom right corner of the image",
)
_PLACED = re.compile(rf"\b({'|'.join(CATEGORIES)}) is (?:located )?({'|'.join(PLACES)})")


def describe(rng: np.random.Generator, objects: Sequence[SceneObject], texture: str, ground: str) -> str:
    """Some forty words: what is there from left to right, where each thing is, how neighbours relate, how it looks."""
    listed = joined([mention(thing) for thing in objects])
    opening = str(rng.choice(["The image features", "The image shows"]))
    sentences = [f"{opening} {listed} on {with_article(f'{texture} {ground} background')}."]
    for number, thing in enumerate(objects):
        name = name_of(thing, objects, with_colour=rng.random() < 0.4)
        verb = str(rng.choice(["is", "is located"]))
        sentence = f"The {name} {verb} {place(thing)}"
        if number and rng.random() < 0.6:
            before = objects[number - 1]
            sentence += f", {_relation(rng, thing, before)} the {name_of(before, objects)}"
        sentences.append(sentence + ".")
    if len(objects) > 1 and rng.random() < 0.4:
        sentences.append(f"In total, there are {NUMBERS[len(objects)]} objects in the image.")
    sentences.append(str(rng.choice(CLOSINGS)))
    return " ".join(sentences)


def answer_questions(
    rng: np.random.Generator, objects: Sequence[SceneObject], texture: str, ground: str
) -> tuple[tuple[str, str], ...]:
    """Color, presence (one yes, one no), place, number and background, each with its answer."""
    thing = objects[int(rng.integers(len(objects)))]
    name = name_of(thing, objects)
    present = {other.category for other in objects}
    absent = str(rng.choice([category for category in CATEGORIES if category not in present]))
    coloured = mention(thing)
    number = NUMBERS[len(objects)]
    there_are = "there is one object" if len(objects) == 1 else f"there are {number} objects"
    pairs = [
        (f"Is there {with_article(thing.category)} in the image?", f"Yes, there is {coloured} in the image."),
        (f"Is there {with_article(absent)} in the image?", f"No, there is no {absent} in the image."),
        (f"Where is the {name}?", f"The {thing.colour} {thing.category} is {place(thing)}."),
        ("How many objects are there?", f"In total, {there_are} in the image."),
        ("What is in the background?", f"The objects are on {with_article(f'{texture} {ground} background')}."),
    ]
    if [other.category for other in objects].count(thing.category) == 1:
        pairs.append((f"What color is the {thing.category}?", f"The {thing.category} is {thing.colour}."))
    return tuple(pairs)


def spoken(texts: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> list[str]:
    """Every text there is, for a tokenizer: the captions, questions and answers of (caption, turns) and the prompt."""
    return [
        *(text for caption, turns in texts for text in (caption, *(part for turn in turns for part in turn))),
        DESCRIBE,
    ]


def listed(caption: str) -> str:
    """What a description's first sentence lists: "a red star and a blue moon on a plain gray background"."""
    return caption.split(".")[0].removeprefix("The image features ").removeprefix("The image shows ")


def listing(mentions: Sequence[tuple[str, str]], texture: str, ground: str) -> str:
    """The same text from (colour, category) of the objects and the background's words."""
    names = joined([with_article(f"{colour} {category}") for colour, category in mentions])
    return f"{names} on {with_article(f'{texture} {ground} background')}"


def mention(thing: SceneObject) -> str:
    """An object's first mention in a description: "an orange anchor"."""
    return with_article(f"{thing.colour} {thing.category}")


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def joined(items: Sequence[str]) -> str:
    if len(items) < 3:
        return " and ".join(items)
    return ", ".join(items[:-1]) + f", and {items[-1]}"


def name_of(thing: SceneObject, objects: Sequence[SceneObject], *, with_colour: bool = False) -> str:
    """The category, with the color when asked for or when another object shares the category."""
    alone = [other.category for other in objects].count(thing.category) == 1
    return f"{thing.colour} {thing.category}" if with_colour or not alone else thing.category


def place(thing: SceneObject) -> str:
    """Where an object is, in thirds of the image."""
    x, y = thing.centre
    column = "left" if x < 0.36 else "right" if x > 0.64 else ""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if row and column:
        return f"in the {row} {column} corner of the image"
    if column:
        return f"on the {column} side of the image"
    return f"near the {row} of the image" if row else "in the center of the image"


def told_places(text: str) -> list[tuple[str, str]]:
    """(category, place) of every sentence that says where a thing is, in the order of the text."""
    return _PLACED.findall(text)


def _relation(rng: np.random.Generator, thing: SceneObject, before: SceneObject) -> str:
    """How `thing` stands to the object before it (which is further left)."""
    options = ["to the right of"]
    if abs(thing.scale - before.scale) > 0.06:
        options.append("and it is larger than" if thing.scale > before.scale else "and it is smaller than")
    drop = thing.centre[1] - before.centre[1]
    if abs(drop) > 0.25:
        options = ["below" if drop > 0 else "above", *options[1:]]
    return str(rng.choice(options))
