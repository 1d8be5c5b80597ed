"""The "Random Point" baseline: a blind model that prompts the segmenter at one random point per annotated category."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from analysis.scoring.coco import CocoDataset
from core.errors import GroundingError


def random_points(dataset: CocoDataset, *, seed: int = 0, draw: int = 0) -> pd.DataFrame:
    """One uniformly random pixel centre for every category annotated in every image.

    Each image has its own stream, seeded by (seed, draw, image id): adding or leaving out images changes no other's
    points.

    Returns:
        Columns `image_id`, `category_id`, `x`, `y`; pixels of the original image.

    Source: section 4.1, "prompts SAM with a random point for segmenting each ground-truth category".
    """
    rows = []
    for image in dataset.images:
        generator = np.random.default_rng([seed, draw, image.id])
        height, width = image.size
        for category_id in dataset.annotated(image.id):
            x, y = generator.integers(width) + 0.5, generator.integers(height) + 0.5
            rows.append((image.id, category_id, x, y))
    return pd.DataFrame(rows, columns=["image_id", "category_id", "x", "y"])


def area_shares(dataset: CocoDataset, *, crowds: bool = True) -> pd.DataFrame:
    """Share of the image that each annotated category covers: the exact chance that a random point hits it.

    Returns:
        Columns `image_id`, `category_id`, `share`; the mean of `share` is the baseline's expected PAcc.
    """
    rows = [
        (image.id, category_id, float(dataset.union_mask(image.id, category_id, crowds=crowds).mean()))
        for image in dataset.images
        for category_id in dataset.annotated(image.id)
    ]
    return pd.DataFrame(rows, columns=["image_id", "category_id", "share"])


def phrase_chances(phrases: pd.DataFrame, dataset: CocoDataset) -> pd.Series:
    """For each matched phrase, the exact chance that a uniformly random point hits its category.

    Args:
        phrases: columns `image_id` and `category_id`.

    Returns:
        Float in 0..1, indexed like `phrases`; its mean is the expected PAcc of random points for these phrases.
    """
    shares = area_shares(dataset).set_index(["image_id", "category_id"])["share"]
    keys = zip(phrases["image_id"], phrases["category_id"], strict=True)
    return pd.Series([shares[key] for key in keys], index=phrases.index, dtype=float)


def segment_random_points(
    dataset: CocoDataset,
    *,
    segmenter: Any,
    path: str | Path,
    seed: int = 0,
    mask_choice: str = "last",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Masks of the random points as COCO results, kept line by line in `path` and resumed from there.

    Args:
        dataset: images and annotated categories.
        segmenter: what `core.masks.load_segmenter` returned.
        path: JSON-lines file; its first line holds the settings, each further line the results of one image.
        seed, mask_choice: as in `random_points` and in `core.attend_and_segment`.
        progress: print a progress line now and then.

    Raises:
        GroundingError: `path` was made with other settings.
    """
    from core.provenance import fingerprint

    path = Path(path)
    settings = {
        "seed": seed,
        "mask_choice": mask_choice,
        "segmenter": segmenter.name,
        "weights": fingerprint(segmenter.predictor.model),
        "dataset": dataset.name,
    }
    finished = dict(_read_lines(path, settings))
    points = random_points(dataset, seed=seed)
    missing = [image for image in dataset.images if image.id not in finished]
    bar = tqdm(missing, desc="random points", file=sys.stdout, mininterval=30, disable=not progress)
    with path.open("a", encoding="utf-8") as file:
        for image in bar:
            finished[image.id] = _segment(image, points[points["image_id"] == image.id], segmenter, mask_choice)
            file.write(json.dumps({"image_id": image.id, "results": finished[image.id]}) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return [result for image in dataset.images for result in finished[image.id]]


def _segment(image: Any, points: pd.DataFrame, segmenter: Any, mask_choice: str) -> list[dict[str, Any]]:
    from core.images import load_image
    from core.masks import choose, encode_rle

    if points.empty:
        return []
    segmenter.set_image(load_image(image.path))
    prompts = torch.tensor(points[["x", "y"]].to_numpy(), dtype=torch.float32)
    chosen = (choose(part, mask_choice) for part in segmenter.predict_in_parts(prompts))
    pairs = [(mask, score) for part in chosen for mask, score in zip(part.masks, part.scores.tolist(), strict=True)]
    return [
        {"image_id": image.id, "category_id": int(category_id), "segmentation": encode_rle(mask), "score": score}
        for category_id, (masks, scores) in zip(points["category_id"], pairs, strict=True)
        for mask, score in zip(masks, scores, strict=True)
    ]


def _read_lines(path: Path, settings: dict[str, Any]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Finished images of an earlier run; a last line cut short by a kill is removed from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return
    if whole != content:
        os.truncate(path, len(whole))
    header, *lines = whole.decode("utf-8").splitlines()
    if json.loads(header) != settings:
        raise GroundingError(
            f"{path} holds random points made with {header}, and now {json.dumps(settings)} was asked for; "
            "choose another output_dir or delete that file"
        )
    for line in lines:
        entry = json.loads(line)
        yield entry["image_id"], entry["results"]
