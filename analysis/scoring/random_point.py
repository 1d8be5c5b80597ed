"""The "Random Point" baseline: a blind model that prompts the segmenter at one random point per annotated category."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from analysis.scoring.coco import CocoDataset, CocoImage, coco_results
from core.errors import GroundingError
from core.images import load_image
from core.masks import Segmenter, encode_chosen
from core.provenance import segmenter_identity
from core.record_folder import Record, RecordFolder


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


def segment_random_points(
    dataset: CocoDataset,
    *,
    segmenter: Segmenter,
    directory: str | Path,
    seed: int = 0,
    mask_choice: str = "last",
    progress: bool = True,
    retry_errors: bool = False,
) -> RecordFolder[Record]:
    """Masks of the random points, a record for each image; finished images are not computed again.

    An image that cannot be read, or is not of its annotations' size, becomes an error record and the run goes on.

    Args:
        dataset: images and annotated categories.
        segmenter: what `core.masks.load_segmenter` returned.
        directory: folder of the records.
        seed, mask_choice: as in `random_points` and in `core.attend_and_segment`.
        progress: print a progress line now and then.
        retry_errors: try the images with an error record again.

    Returns:
        The records; `random_results` makes COCO results of them.

    Raises:
        GroundingError: the folder was begun with other settings, or an unknown mask choice.
    """
    config = {
        "baseline": "random point",
        "seed": seed,
        "mask_choice": mask_choice,
        "segmenter": segmenter_identity(segmenter),
        "dataset": dataset.name,
    }
    store: RecordFolder[Record] = RecordFolder(directory, config)
    done, points = store.done(errors=not retry_errors), random_points(dataset, seed=seed)
    missing = [image for image in dataset.images if str(image.id) not in done]
    for image in tqdm(missing, desc="random points", file=sys.stdout, mininterval=30, disable=not progress):
        try:
            picture = _open(image)
        except GroundingError as error:
            store.write_error(str(image.id), str(error))
            continue
        store.write(str(image.id), _segment(picture, points[points["image_id"] == image.id], segmenter, mask_choice))
    return store


def random_results(store: RecordFolder[Record], dataset: CocoDataset) -> list[dict[str, Any]]:
    """COCO results of the random points' masks, in the order of the dataset's images, of those that have a record."""
    results = []
    for record_id, record in dataset.records(store):
        chosen = zip(
            record.tensors["categories"].tolist(), record.about["masks"], record.tensors["scores"].tolist(), strict=True
        )
        for category_id, masks, scores in chosen:
            results += coco_results(int(record_id), category_id, masks, scores)
    return results


def _open(image: CocoImage) -> Image.Image:
    picture = load_image(image.path)
    if (picture.height, picture.width) != tuple(image.size):
        raise GroundingError(
            f"{image.path} has (H, W) {(picture.height, picture.width)}, and the dataset's annotations are of "
            f"{tuple(image.size)}; give the images that were annotated"
        )
    return picture


def _segment(picture: Image.Image, points: pd.DataFrame, segmenter: Segmenter, mask_choice: str) -> Record:
    """One image's record: `points` [c, 2], their `categories` [c] and the masks' `scores` [c, m]; masks in the JSON."""
    prompts = torch.tensor(points[["x", "y"]].to_numpy(), dtype=torch.float32)
    if len(prompts):
        segmenter.set_image(picture)
    parts = segmenter.predict_in_parts(prompts, choice=mask_choice) if len(prompts) else ()
    masks, scores = encode_chosen(parts, mask_choice)
    categories = torch.tensor(points["category_id"].to_numpy(int))
    return Record({"points": prompts, "categories": categories, "scores": scores}, {"masks": masks})
