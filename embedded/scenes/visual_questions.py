"""Questions about scenes, each with the one right answer in short, and POPE's questions about what is not there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.atomic import write_atomically
from core.errors import GroundingError
from embedded.scenes.captions import DESCRIBE
from embedded.scenes.dataset import write_picture
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import SPLITS, Scene, make_scene

KINDS = {  # kind of question -> (how it begins, where its short answer stands in the answers that the scenes are given)
    "presence": (r"Is there ", r"^(yes|no)\b"),
    "place": (r"Where is ", r"\bis ((?:in|on|near) the [a-z ]+?) of the image"),
    "number": (r"How many ", r"\bthere (?:is|are) (\w+) objects?\b"),
    "background": (r"What is in the background", r"\bon an? (\w+ \w+) background"),
    "color": (r"What color is ", r"\bis (\w+)\W*$"),
}
STRATEGIES = ("random", "popular", "adversarial")
QUESTIONS, POPE, DESCRIBED = "scenes_vqa", "scenes_pope", "scenes_pope_described"  # names of the files and tasks


def kind_of(question: str) -> str:
    """Which of `KINDS` a question is.

    Raises:
        GroundingError: none of them.
    """
    for kind, (begins, _) in KINDS.items():
        if re.match(begins, question):
            return kind
    raise GroundingError(f"{question!r} is no question of the scenes; they ask for {', '.join(KINDS)}")


def short_answer(kind: str, answer: str) -> str:
    """The words of an answer that answer a question of this kind, in lower case; "" where it does not say so.

    >>> short_answer("number", "In total, there are three objects in the image.")
    'three'

    Raises:
        GroundingError: an unknown kind.
    """
    if kind not in KINDS:
        raise GroundingError(f"there are no questions of the kind {kind!r}; choose one of {', '.join(KINDS)}")
    found = re.search(KINDS[kind][1], answer.strip().lower())
    return found[1] if found else ""


@dataclass(frozen=True)
class Poll:
    """What is asked about one picture: categories that are there, and for each strategy categories that are not."""

    present: tuple[str, ...]
    absent: dict[str, tuple[str, ...]]


def poll(pictures: Sequence[Sequence[str]], *, seed: int = 0, categories: Sequence[str] = CATEGORIES) -> list[Poll]:
    """For every picture, its categories and as many that it lacks, chosen in each of POPE's three ways.

    `random` draws them; `popular` takes those that are in most of the pictures; `adversarial` those that are most often
    in one picture with this one's categories. Frequencies are counted over the given pictures; ties fall to the more
    frequent category, then to the first of `categories`.

    Args:
        pictures: the categories in each.
        seed: of the random choice.

    Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv 2305.10355), section 5.
        Its pictures have at least three objects and are asked about three; ours are asked about all they have.
    """
    present = [tuple(sorted(set(picture), key=list(categories).index)) for picture in pictures]
    frequency = Counter(category for picture in present for category in picture)
    together = Counter(pair for picture in present for pair in permutations(picture, 2))
    polls = []
    for number, picture in enumerate(present):
        absent = [category for category in categories if category not in picture]
        most = min(len(picture), len(absent))
        popular = sorted(absent, key=lambda name: -frequency[name])
        beside = {name: sum(together[mine, name] for mine in picture) for name in popular}
        drawn = np.random.default_rng([seed, number]).permutation(absent)[:most]
        chosen = (drawn.tolist(), popular[:most], sorted(popular, key=lambda name: -beside[name])[:most])
        polls.append(Poll(picture, dict(zip(STRATEGIES, map(tuple, chosen), strict=True))))
    return polls


def write_visual_questions(
    directory: str | Path, *, split: str = "val", n: int = 100, seed: int = 0, progress: bool = False
) -> Path:
    """Writes the first `n` scenes of a split as sets for visual question answering and returns their folder.

    The folder holds `images/<id>.png` and three files of one JSON object a line, each with `question_id`, `image_id`,
    `image` (the picture's absolute path: write again after moving the folder), `question` and `answer`:

    - `scenes_vqa.jsonl`: the questions of the scenes, with `kind`, the answer in short, and `sentence`, the answer as
      training has it.
    - `scenes_pope.jsonl`: "Is there a ... in the image?" with yes or no; `strategies` names those of POPE's three sets
      that a question belongs to. What is there belongs to all three.
    - `scenes_pope_described.jsonl`: the same polls without asking them: each picture is to be described once, and
      `poll` lists what a description then says yes or no to, as objects with `category`, `answer` and `strategies`.

    Args:
        split, n, seed, progress: as in `embedded.scenes.dataset.write_dataset`; the models saw scenes of `train`.

    Raises:
        GroundingError: unknown split.
    """
    directory = Path(directory).resolve()
    (directory / "images").mkdir(parents=True, exist_ok=True)
    scenes: dict[str, Scene] = {}
    for index in tqdm(range(n), desc=f"scenes ({split})", disable=not progress, mininterval=2):
        scene = scenes[f"{split}_{index:06d}"] = make_scene(split, index, seed=seed)
        write_picture(scene, directory / "images" / f"{split}_{index:06d}.png")
    asked = [row for key, scene in scenes.items() for row in _questions(key, scene)]
    visible = [[thing.category for thing in scene.objects if thing.mask.any()] for scene in scenes.values()]
    polls = poll(visible, seed=seed + 10_000 * SPLITS.index(split))
    polled = [row for key, each in zip(scenes, polls, strict=True) for row in _presence(key, each)]
    described = [_description(key, each, scenes[key].caption) for key, each in zip(scenes, polls, strict=True)]
    for name, rows in {QUESTIONS: asked, POPE: polled, DESCRIBED: described}.items():
        for row in rows:
            row["image"] = str(directory / "images" / f"{row['image_id']}.png")
        write_atomically(directory / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return directory


def _questions(key: str, scene: Scene) -> list[dict]:
    rows = []
    for number, (question, sentence) in enumerate(scene.questions):
        kind = kind_of(question)
        own = {"kind": kind, "question": question, "answer": short_answer(kind, sentence), "sentence": sentence}
        rows.append({"question_id": f"{key}/{number}", "image_id": key} | own)
    return rows


def _presence(key: str, asked: Poll) -> list[dict]:
    rows = []
    for row in _polled(asked):
        category = row.pop("category")
        question = f"Is there {'an' if category[0] in 'aeiou' else 'a'} {category} in the image?"
        rows.append({"question_id": f"{key}/{category}", "image_id": key, "question": question} | row)
    return rows


def _description(key: str, asked: Poll, caption: str) -> dict:
    return {"question_id": key, "image_id": key, "question": DESCRIBE, "answer": caption, "poll": _polled(asked)}


def _polled(asked: Poll) -> list[dict]:
    """One row for each category that is asked about, however many strategies chose it."""
    chosen = {category: list(STRATEGIES) for category in asked.present}
    for strategy, categories in asked.absent.items():
        for category in categories:
            chosen.setdefault(category, []).append(strategy)
    return [
        {"category": category, "answer": "yes" if category in asked.present else "no", "strategies": strategies}
        for category, strategies in chosen.items()
    ]
