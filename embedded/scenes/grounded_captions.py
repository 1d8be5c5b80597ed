"""Scenes as grounded conversation generation has them: GranD-f's two files, drawn instead of annotated."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from embedded.scenes.captions import mention
from embedded.scenes.dataset import mask_fields, write_json, write_picture
from embedded.scenes.scenes import make_scene


def write_grounded_captions(
    directory: str | Path,
    *,
    split: str = "val",
    n: int = 100,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Writes the first `n` scenes of a split as a set for grounded conversation generation and returns its folder.

    The folder holds `images/<split>_<index>.png`, `<split>_gcg_coco_caption_gt.json` (each description and, as
    `labels`, the words by which it first mentions each visible object) and `<split>_gcg_coco_mask_gt.json` (one mask
    for each label, in their order). Pictures and their ids, here as texts, are those of `write_dataset`; what is there
    is not drawn again.

    Args:
        split, n, size, seed, progress: as in `embedded.scenes.dataset.write_dataset`.

    Raises:
        GroundingError: unknown split or a size too small to draw.
    """
    directory = Path(directory)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    images, captions, masks = [], [], []
    for index in tqdm(range(n), desc=f"grounded scenes ({split})", disable=not progress, mininterval=2):
        scene = make_scene(split, index, size=size, seed=seed)
        key, name = str(index), f"{split}_{index:06d}.png"
        write_picture(scene, directory / "images" / name)
        shape = {"height": scene.image.height, "width": scene.image.width}
        images.append({"id": key, "file_name": name, **shape})
        visible = [thing for thing in scene.objects if thing.mask.any()]
        labels = [mention(thing) for thing in visible]
        captions.append({"id": index + 1, "image_id": key, "caption": scene.caption, "labels": labels})
        for thing in visible:
            masks.append({"id": len(masks) + 1, "image_id": key, "category_id": 1, **mask_fields(thing)})
    info = {"description": f"procedural scenes, split {split}, seed {seed}, {n} pictures", "version": "1"}
    categories = [{"id": 1, "name": "object"}]
    write_json(
        directory / f"{split}_gcg_coco_mask_gt.json",
        {"info": info, "images": images, "annotations": masks, "categories": categories},
    )
    write_json(
        directory / f"{split}_gcg_coco_caption_gt.json", {"info": info, "images": images, "annotations": captions}
    )
    return directory
