"""Where a model looked when it answered: one map for each answer, read at the words that answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.attention import to_grid
from core.errors import GroundingError
from core.generation import Generation
from embedded.scenes.visual_questions import QUESTIONS, kind_of, short_answer


def first_questions(folder: str | Path, *, n: int = 6) -> list[dict[str, Any]]:
    """The first questions of a folder of `write_visual_questions`, all about one picture.

    Raises:
        GroundingError: there is no such file.
    """
    path = Path(folder) / f"{QUESTIONS}.jsonl"
    if not path.is_file():
        raise GroundingError(f"no {path.name} in {str(folder)!r}; write_visual_questions makes it")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["image_id"] == rows[0]["image_id"]][:n]


def look(row: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    """One answer for `analysis.vqa.figures.plot_answers`: what was asked and said, and where the words looked.

    The map is the mean, over the tokens of the answering words, of their attention; for a question after a thing these
    words are its name, for others the short answer. Words that were not said stand for the whole answer.

    Returns:
        `question`, `answer`, `words`, `expected`, `right`, `grid` (float [h, w]) and `box` (x0, y0, x1, y1 of the grid
        in pixels of the picture).
    """
    kind, text = kind_of(row["question"]), generation.text
    named = re.match(r"Is there an? (\w+)", row["question"])
    words = named[1] if named else short_answer(kind, text)
    start = text.lower().find(words) if words else -1
    begin, end = (start, start + len(words)) if start >= 0 else (0, len(text))
    spans = generation.token_spans.numpy()
    chosen = (spans[:, 0] < end) & (spans[:, 1] > begin)
    view = generation.view()
    maps = to_grid(generation.attention, view).numpy()
    return {
        "question": row["question"],
        "answer": text,
        "words": text[begin:end],
        "expected": row["answer"],
        "right": short_answer(kind, text) == row["answer"],
        "grid": maps[chosen].mean(axis=0) if chosen.any() else np.zeros(maps.shape[1:]),
        "box": tuple(float(side) for side in view.box),
    }
