"""Scenes on disk: images, a COCO `instances` JSON with exact masks and descriptions, and LLaVA's training JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.atomic import open_atomically, write_atomically
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scene_object import SceneObject
from embedded.scenes.scenes import Scene, make_scene


def write_dataset(
    directory: str | Path,
    *,
    split: str = "val",
    n: int = 100,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Writes the first `n` scenes of a split and returns the path of `instances.json`.

    The folder holds `images/<split>_<index>.png`, `instances.json` (COCO's instances format: masks as compressed RLE,
    `attributes.colour` with every annotation, `caption` and `questions` with every image) and `conversations.json`
    (LLaVA's training format). Pictures that are already there are not drawn again; `instances.json` is written last,
    so a killed run can be started again.

    Args:
        split: `train`, `val` or `test`.
        size: (H, W) in pixels of every picture; by default sizes vary.

    Raises:
        GroundingError: unknown split or a size too small to draw.
    """
    directory = Path(directory)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    images, annotations, conversations = [], [], []
    for index in tqdm(range(n), desc=f"scenes ({split})", disable=not progress, mininterval=2):
        scene = make_scene(split, index, size=size, seed=seed)
        name = f"{split}_{index:06d}.png"
        write_picture(scene, directory / "images" / name)
        images.append(
            {
                "id": index,
                "file_name": name,
                "width": scene.image.width,
                "height": scene.image.height,
                "caption": scene.caption,
                "questions": [{"question": question, "answer": answer} for question, answer in scene.questions],
            }
        )
        annotations += _annotations(scene, index, first=len(annotations) + 1)
        conversations.append(_conversation(scene, name))
    write_json(directory / "conversations.json", conversations)
    described = f"procedural scenes, split {split}, seed {seed}, {n} pictures"
    return write_json(
        directory / "instances.json",
        {
            "info": {"description": described, "version": "1"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(CATEGORIES)],
        },
    )


def _annotations(scene: Scene, image_id: int, *, first: int) -> list[dict]:
    rows = []
    for thing in scene.objects:
        if not thing.mask.any():
            continue
        rows.append(
            {
                "id": first + len(rows),
                "image_id": image_id,
                "category_id": CATEGORIES.index(thing.category) + 1,
                **mask_fields(thing),
                "attributes": {"colour": thing.colour},
            }
        )
    return rows


def mask_fields(thing: SceneObject) -> dict:
    """What COCO's annotations say of an object's visible pixels: compressed run-length code, area and box."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
    return {
        "segmentation": {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(thing.mask.sum()),
        "bbox": list(thing.box),
        "iscrowd": 0,
    }


def _conversation(scene: Scene, name: str) -> dict:
    """One record of LLaVA's training JSON."""
    from embedded.scenes.captions import DESCRIBE

    turns = [(f"<image>\n{DESCRIBE}", scene.caption), *scene.questions]
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": name.removesuffix(".png"), "image": name, "conversations": said}


def write_picture(scene: Scene, path: Path) -> None:
    """Keep a scene's picture as PNG, unless it is there already."""
    if not path.is_file():
        with open_atomically(path) as file:
            scene.image.save(file, format="png")


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file whole or not at all; returns its path."""
    write_atomically(path, json.dumps(content).encode())
    return path
