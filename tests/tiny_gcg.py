"""A small grounded-conversation set in GranD-f's two files, and predictions for it in GLaMM's format, from a seed.

It holds what real files may: crowds, empty and duplicate masks, images without phrases, without masks, without a
caption or with several, and answers with more phrases than masks or fewer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_coco

WORDS = ("star", "sun", "cat", "kitten", "plant", "rock")  # those of tiny_coco.vectors_nlp
SIZE = (40, 56)


class Vectors:
    """A text encoder with the vectors of `tiny_coco.vectors_nlp`."""

    name = "tiny vectors"

    def __init__(self):
        self.nlp = tiny_coco.vectors_nlp()

    def encode(self, texts):
        """The mean of the words' vectors."""
        return np.stack([self.nlp.make_doc(text).vector for text in texts])


def blob(rng: np.random.Generator) -> np.ndarray:
    """A random rectangle with some pixels flipped."""
    y, x = rng.integers(0, SIZE[0] - 8), rng.integers(0, SIZE[1] - 8)
    mask = tiny_coco.rectangle(SIZE, x, y, x + int(rng.integers(6, 30)), y + int(rng.integers(6, 24)))
    return mask ^ (rng.random(SIZE) < 0.01)


def near(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A shifted copy."""
    return np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))


def phrase(rng: np.random.Generator) -> str:
    """An article and a word."""
    return f"a {rng.choice(WORDS)}"


def write(folder: Path, *, seed: int = 0, n: int = 40, split: str = "val") -> Path:
    """Write both annotation files into `folder` and a prediction for every image into `folder/predictions`."""
    rng = np.random.default_rng(seed)
    (folder / "predictions").mkdir(parents=True)
    images, masks, captions = [], [], []
    for number in range(n):
        key = f"sa_{(number * 37) % 101}"  # not in the order of names
        images.append({"id": key, "file_name": f"{key}.jpg", "height": SIZE[0], "width": SIZE[1]})
        true = [blob(rng) for _ in range(0 if number % 11 == 3 else rng.integers(1, 6))]
        if number % 9 == 4 and true:
            true[0] = np.zeros(SIZE, bool)
        if number % 7 == 5 and len(true) > 1:
            true[1] = true[0]
        labels = [phrase(rng) for _ in true]
        for place, mask in enumerate(true):
            crowd = int(place == 0 and number % 5 == 2)
            about = {"id": len(masks) + 1, "image_id": key, "category_id": 1, "iscrowd": crowd}
            box = [float(side) for side in tiny_coco.rle.toBbox(tiny_coco.compressed(mask))]
            code = tiny_coco.compressed(mask)
            masks.append(about | {"area": int(mask.sum()), "bbox": box, "segmentation": code})
        said = [*labels, "a plant"] if number % 13 == 6 else labels
        for text in range(0 if number % 17 == 9 else 1 + number % 2):
            about = {"id": len(captions) + 1, "image_id": key, "labels": said}
            captions.append(about | {"caption": f"The image shows {' and '.join(labels) or 'nothing'}, {text}."})
        found = [
            (near(rng, mask), label if rng.random() < 0.7 else phrase(rng))
            for mask, label in zip(true, labels, strict=True)
        ]
        found = [pair for pair in found if rng.random() < 0.9] + [(blob(rng), phrase(rng)) for _ in range(2)]
        if number % 9 == 4 and number % 2 and true:
            found.append((np.zeros(SIZE, bool), labels[0]))
        if number % 7 == 5:
            found += found[:1]
        if number % 10 == 8:
            found = []
        codes = [tiny_coco.compressed(mask) for mask, _ in found]
        words = [text for _, text in found]
        inner = {
            "caption": f"A picture of {' and '.join(words)}." if words else "",
            "phrases": words[:-1] if number % 12 == 7 else words,
            "pred_masks": codes[:-1] if number % 12 == 10 else codes,
        }
        whole = {"image_id": key, **inner} if number % 3 else {key: inner}
        (folder / "predictions" / f"{key}.json").write_text(json.dumps(whole))
    spoken = {"images": images, "annotations": captions}
    (folder / f"{split}_gcg_coco_caption_gt.json").write_text(json.dumps(spoken))
    drawn = {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "object"}]}
    (folder / f"{split}_gcg_coco_mask_gt.json").write_text(json.dumps(drawn))
    return folder
