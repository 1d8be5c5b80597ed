"""A small COCO `instances` file with every way of writing a mask, and groundings that answer for its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import spacy
import torch
from PIL import Image
from pycocotools import mask as rle

from analysis.scoring.matching import CategoryMatcher
from core.generation import Generation
from core.geometry import View
from core.options import GroundOptions
from core.phrases import Phrase
from core.pipeline import Grounding
from core.rle import encode_rle

SIZES = {
    3: (80, 120),
    7: (110, 60),
    12: (64, 64),
    20: (50, 90),
    30: (130, 150),
}  # image id -> (H, W); image 20 has no annotation
CATEGORIES = {1: "star", 5: "cat", 9: "potted plant"}


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Bool [H, W], true on rows y0..y1-1 and columns x0..x1-1."""
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


MASKS = {  # annotation id -> (image id, category id, crowd, mask, colour)
    1: (3, 1, 0, rectangle(SIZES[3], 10, 20, 60, 70), "red"),
    2: (3, 5, 0, rectangle(SIZES[3], 70, 5, 110, 30), "black"),
    3: (3, 1, 0, rectangle(SIZES[3], 100, 60, 110, 75), "blue"),
    4: (7, 5, 0, rectangle(SIZES[7], 0, 0, 30, 90), "black"),
    5: (7, 9, 0, rectangle(SIZES[7], 35, 50, 60, 110), "green"),
    6: (7, 5, 1, rectangle(SIZES[7], 40, 0, 60, 20), "white"),
    7: (12, 9, 0, rectangle(SIZES[12], 8, 8, 24, 40), "green"),
    8: (30, 1, 0, rectangle(SIZES[30], 20, 10, 140, 120), "yellow"),
}


def compressed(mask: np.ndarray) -> dict:
    """Compressed RLE with text counts, as in a JSON file."""
    return encode_rle(torch.from_numpy(mask))


def uncompressed(mask: np.ndarray) -> dict:
    """Uncompressed RLE: run lengths down the columns, starting with the background."""
    flat = mask.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, len(flat)]).tolist()}


def polygon(mask: np.ndarray) -> list[list[float]]:
    """The outline of a rectangle's pixels."""
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = (float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


WRITTEN = {
    1: compressed,
    2: polygon,
    3: uncompressed,
    4: polygon,
    5: compressed,
    6: uncompressed,
    7: polygon,
    8: compressed,
}


def write(directory: Path, *, images: bool = False) -> Path:
    """Write `instances.json` (and pictures on request) and return its path."""
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": crowd,
            "area": int(mask.sum()),
            "bbox": [float(v) for v in rle.toBbox(compressed(mask))],
            "segmentation": WRITTEN[number](mask),
            "attributes": {"colour": colour},
        }
        for number, (image_id, category_id, crowd, mask, colour) in MASKS.items()
    ]
    content = {
        "images": [
            {"id": key, "file_name": f"{key:06d}.png", "height": h, "width": w} for key, (h, w) in SIZES.items()
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
    }
    path = directory / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    if images:
        (directory / "images").mkdir()
        rng = np.random.default_rng(0)
        for key, (h, w) in SIZES.items():
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(
                directory / "images" / f"{key:06d}.png"
            )
    return path


def vectors_nlp() -> spacy.Language:
    """A blank pipeline with two-dimensional word vectors, so that cosines can be done by hand."""
    nlp = spacy.blank("en")
    words = {
        "star": (1, 0),
        "sun": (0.8, 0.6),
        "cat": (0, 1),
        "kitten": (0.28, 0.96),
        "plant": (-1, 0),
        "rock": (0.3, -0.95),
    }
    for word, vector in words.items():
        nlp.vocab.set_vector(word, np.array(vector, dtype=np.float32))
    return nlp


def grounding(
    size: tuple[int, int],
    said: Sequence[tuple[str, tuple[float, float], Sequence[np.ndarray]]],
    *,
    scores: Sequence[float] = (0.9, 0.8, 0.7),
    maps: np.ndarray | None = None,
) -> Grounding:
    """An answer that names some nouns in order, each with its prompt point (x, y) and its masks.

    The answer is "a star , a cat …": token 2i is the article, token 2i + 1 the noun of phrase i, the last one ends it.
    `maps` is float [t, h, w] of all tokens; random by default.
    """
    words = [word for noun, _, _ in said for word in ("a", noun)]
    text, spans = "", []
    for word in words:
        spans.append((len(text), len(text) + len(word)))
        text += word + " "
    text = text.strip()
    phrases = tuple(
        Phrase(f"a {noun}", (spans[2 * i][0], spans[2 * i + 1][1]), noun, spans[2 * i + 1], (2 * i + 1,))
        for i, (noun, _, _) in enumerate(said)
    )
    grid = torch.rand(len(words) + 1, 5, 6) if maps is None else torch.tensor(maps, dtype=torch.float32)
    h, w = grid.shape[1:]
    view = View("image", torch.arange(h * w).reshape(h, w), (0.0, 0.0, float(size[1]), float(size[0])))
    attention = grid.reshape(len(grid), -1)
    generation = Generation(
        text=text,
        token_ids=torch.arange(len(words) + 1),
        prompt_ids=torch.arange(4),
        attention=attention,
        views=(view,),
        token_spans=torch.tensor([*spans, (len(text), len(text))]),
        image_size=size,
        model={"name_or_path": "tiny/model"},
    )
    kept = len(said[0][2]) if said else 1
    return Grounding(
        image_size=size,
        generation=generation,
        phrases=phrases,
        maps=attention[[2 * i + 1 for i in range(len(said))]],
        points=torch.tensor([point for _, point, _ in said], dtype=torch.float32).reshape(-1, 2),
        masks=tuple(tuple(compressed(mask) for mask in masks) for _, _, masks in said),
        scores=torch.tensor([list(scores[:kept]) for _ in said], dtype=torch.float32).reshape(len(said), kept),
        options=GroundOptions(view="image", normalization="none"),
    )


def matcher() -> CategoryMatcher:
    """Matching by the vectors above, head nouns at 0.5."""
    return CategoryMatcher(vectors_nlp())
