"""GranD-f's two files, captions with their grounded phrases and the phrases' masks, read into one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.gcg.dataset import GcgDataset, GcgImage
from analysis.gcg.masks import checked_rle
from analysis.scoring.coco import annotation_rle, read_json_object
from core.errors import GroundingError

CAPTIONS, MASKS = "gcg_coco_caption_gt.json", "gcg_coco_mask_gt.json"
ENDINGS = (".jpg", ".png", ".jpeg")


def find_files(data: str | Path, split: str) -> tuple[Path, Path]:
    """The caption file and the mask file of a split, from their folder.

    Raises:
        GroundingError: no such folder.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise GroundingError(
            f"data is {str(data)!r}; give the folder that holds {split}_{CAPTIONS} and {split}_{MASKS} (GranD-f)"
        )
    return folder / f"{split}_{CAPTIONS}", folder / f"{split}_{MASKS}"


def load_gcg(
    data: str | Path, images_dir: str | Path = "", *, split: str = "val", n_images: int = 0, name: str = ""
) -> GcgDataset:
    """Read a split of GranD-f, or anything in its format.

    Args:
        data: folder of `{split}_gcg_coco_caption_gt.json` and `{split}_gcg_coco_mask_gt.json`.
        images_dir: folder of the pictures; "" is `images` in `data`.
        split: val or test, as the files' names begin.
        n_images: keep the first so many images; 0 keeps all.
        name: of the dataset; "" is the folder's name and the split.

    Raises:
        GroundingError: a file is missing or not of this format; the message names the record and the field.

    Source: the files' format follows the public evaluator of GLaMM (eval/gcg/evaluate.py).
    """
    captions, masks = find_files(data, split)
    spoken, drawn = read_json_object(captions), read_json_object(masks)
    for path, content in ((captions, spoken), (masks, drawn)):
        absent = [key for key in ("images", "annotations") if not isinstance(content.get(key), list)]
        if absent:
            raise GroundingError(
                f"{path} lacks the list {' and the list '.join(absent)}; it is not of GranD-f's format"
            )
    entries = _images(captions, spoken["images"])
    if not entries:
        raise GroundingError(f"{captions} lists no image")
    sizes = _sizes(captions, spoken["images"]) | _sizes(masks, drawn["images"])
    said = _captions(captions, spoken["annotations"], entries)
    others = {str(each.get("id")) for each in drawn["images"] if isinstance(each, dict)}
    found, left_out = _masks(masks, drawn["annotations"], entries, others)
    folder = Path(images_dir) if str(images_dir) else Path(data) / "images"
    images = tuple(
        _image(key, entry, folder, sizes.get(key), said.get(key, []), found.get(key, []), masks)
        for key, entry in list(entries.items())[: n_images or None]
    )
    return GcgDataset(name or f"{Path(data).name} ({split})", images, _ranks(entries)[: len(images)], left_out)


def _images(path: Path, entries: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The image entries by their ids as text, in the file's order."""
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise GroundingError(f"images[{number}] in {path} has no id that is a text or a whole number")
        if str(entry["id"]) in found:
            raise GroundingError(f"image {entry['id']!r} appears twice in {path}")
        found[str(entry["id"])] = entry
    return found


def _sizes(path: Path, entries: Sequence[Any]) -> dict[str, tuple[int, int]]:
    sizes = {}
    for entry in entries:
        if isinstance(entry, dict) and {"id", "height", "width"} <= set(entry):
            size = (entry["height"], entry["width"])
            if not all(type(side) is int and side > 0 for side in size):
                raise GroundingError(f"image {entry['id']!r} in {path} has height and width {size}; give pixels")
            sizes[str(entry["id"])] = size
    return sizes


def _captions(path: Path, entries: Sequence[Any], known: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The caption annotations of every image."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries):
        key, who = _owner(path, number, entry, "caption")
        if key not in known:
            raise GroundingError(f"{who} is of an image that the file does not list")
        labels = entry.get("labels")
        if not isinstance(entry.get("caption"), str):
            raise GroundingError(f"{who} has no text as `caption`, but {str(entry.get('caption'))[:40]!r}")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise GroundingError(f"{who} has no list of texts as `labels`, but {str(labels)[:40]!r}")
        found.setdefault(key, []).append(entry)
    return found


def _masks(
    path: Path, entries: Sequence[Any], known: Mapping[str, Any], others: set[str]
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The mask annotations of every image with a caption, and how many are of others."""
    found: dict[str, list[dict[str, Any]]] = {}
    seen, left_out = set(), 0
    for number, entry in enumerate(entries):
        key, who = _owner(path, number, entry, "mask")
        if entry.get("id") in seen:
            raise GroundingError(f"{who}: the id {entry['id']!r} appears twice")
        seen.add(entry.get("id"))
        if key not in known and key not in others:
            raise GroundingError(f"{who} is of an image that neither file lists")
        if key in known:
            found.setdefault(key, []).append(entry)
        else:
            left_out += 1
    return found, left_out


def _owner(path: Path, number: int, entry: Any, what: str) -> tuple[str, str]:
    """The image's id as text, and the annotation in words for messages."""
    if not isinstance(entry, dict) or "image_id" not in entry:
        raise GroundingError(f"annotations[{number}] in {path} names no image_id")
    named = f"annotation {entry['id']!r}" if "id" in entry else f"annotations[{number}]"
    return str(entry["image_id"]), f"the {what} {named} of image {entry['image_id']!r} in {path}"


def _image(
    key: str,
    entry: dict[str, Any],
    folder: Path,
    size: tuple[int, int] | None,
    said: Sequence[dict[str, Any]],
    drawn: Sequence[dict[str, Any]],
    path: Path,
) -> GcgImage:
    codes = []
    for number, annotation in enumerate(drawn):
        _, who = _owner(path, number, annotation, "mask")
        segmentation = annotation.get("segmentation")
        if not codes and isinstance(segmentation, dict) and isinstance(segmentation.get("size"), list):
            size = tuple(segmentation["size"])  # what masks say of themselves counts more than an image's entry
        try:
            if isinstance(segmentation, list) and size is not None:
                codes.append(annotation_rle(annotation, size))
            else:
                codes.append(checked_rle(segmentation, size))
        except GroundingError as error:
            raise GroundingError(f"{who} has a segmentation that cannot be used: {error}") from error
    return GcgImage(
        id=key,
        path=folder / entry["file_name"] if isinstance(entry.get("file_name"), str) else _picture(folder, key),
        size=size,
        captions=tuple(each["caption"] for each in said),
        labels=tuple(said[0]["labels"]) if said else (),
        masks=tuple(codes),
        crowds=tuple(bool(each.get("iscrowd", 0)) for each in drawn),
    )


def _picture(folder: Path, key: str) -> Path:
    """The picture of an image whose file is not named: its id with an ending."""
    there = (folder / f"{key}{ending}" for ending in ENDINGS)
    return next((path for path in there if path.is_file()), folder / f"{key}{ENDINGS[0]}")


def _ranks(entries: Mapping[str, dict[str, Any]]) -> tuple[int, ...]:
    own = [entry["id"] for entry in entries.values()]
    alike = len({type(each) for each in own}) == 1
    order = sorted(range(len(own)), key=lambda place: own[place] if alike else str(own[place]))
    ranks = [0] * len(own)
    for rank, place in enumerate(order):
        ranks[place] = rank
    return tuple(ranks)
