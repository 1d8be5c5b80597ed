"""COCO `instances` files: images, categories and ground-truth masks, indexed by image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as rle

from core.errors import GroundingError


@dataclass(frozen=True)
class CocoImage:
    """One image of a dataset: its id, its file, its size (H, W) and its reference caption ("" where there is none)."""

    id: int
    path: Path
    size: tuple[int, int]
    caption: str = ""


@dataclass(frozen=True)
class CocoDataset:
    """A COCO `instances` dataset; `annotations` maps an image id to its annotation dicts, crowd regions included."""

    name: str
    images: tuple[CocoImage, ...]
    categories: dict[int, str]
    annotations: dict[int, tuple[dict[str, Any], ...]] = field(repr=False)

    @cached_property
    def _by_id(self) -> dict[int, CocoImage]:
        return {image.id: image for image in self.images}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, image_id: int | str) -> CocoImage:
        """The image with this id (record ids are strings, so both spellings are accepted).

        Raises:
            GroundingError: no such image.
        """
        try:
            return self._by_id[int(image_id)]
        except (KeyError, ValueError):
            raise GroundingError(
                f"dataset {self.name!r} has no image with id {image_id!r} among its {len(self)}; "
                "were the records made from another dataset?"
            ) from None

    def items(self) -> list[tuple[str, Path]]:
        """(record id, image file) pairs, as `core.run.ground_dataset` takes them."""
        return [(str(image.id), image.path) for image in self.images]

    def records(self, store: Any) -> Iterator[tuple[str, Any]]:
        """(record id, record) of this dataset's images that a store holds, in the dataset's order, one at a time."""
        held = set(store.ids())
        return ((record_id, store.read(record_id)) for record_id, _ in self.items() if record_id in held)

    def nth(self, position: int) -> CocoImage:
        """The image at a position, counted from 0.

        Raises:
            GroundingError: no such position.
        """
        if not 0 <= position < len(self):
            raise GroundingError(f"there is no image {position} in {self.name!r}; positions are 0 to {len(self) - 1}")
        return self.images[position]

    def annotated(self, image_id: int) -> dict[int, str]:
        """Categories annotated in one image, {category id: name}, in the order of their ids."""
        present = {annotation["category_id"] for annotation in self.annotations.get(image_id, ())}
        return {category_id: self.categories[category_id] for category_id in sorted(present)}

    def union_mask(self, image_id: int, category_id: int, *, crowds: bool = True) -> Bool[np.ndarray, "H W"]:
        """Every pixel of one category in one image; crowd regions count unless `crowds` is false."""
        image = self.image(image_id)
        union = np.zeros(image.size, dtype=bool)
        for annotation in self.annotations.get(image_id, ()):
            if annotation["category_id"] == category_id and (crowds or not annotation.get("iscrowd", 0)):
                union |= annotation_mask(annotation, image.size)
        return union

    def head(self, n: int) -> CocoDataset:
        """The first `n` images (0 keeps all), with only their annotations."""
        if n == 0 or n >= len(self):
            return self
        images = self.images[:n]
        kept = {image.id: self.annotations.get(image.id, ()) for image in images}
        return replace(self, images=images, annotations=kept)

    def to_coco(self) -> dict[str, Any]:
        """The dataset as a COCO dict whose segmentations are compressed RLE, ready for pycocotools' evaluator."""
        annotations = []
        for image in self.images:
            for annotation in self.annotations.get(image.id, ()):
                encoded = annotation_rle(annotation, image.size)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image.id,
                        "category_id": annotation["category_id"],
                        "segmentation": encoded,
                        "area": float(annotation.get("area", rle.area(encoded))),
                        "bbox": [float(value) for value in rle.toBbox(encoded)],
                        "iscrowd": int(annotation.get("iscrowd", 0)),
                    }
                )
        images = [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in self.images]
        categories = [{"id": key, "name": name} for key, name in self.categories.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def annotation_rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Compressed RLE of one annotation, whichever way it is written (polygons, uncompressed or compressed RLE).

    Raises:
        GroundingError: the annotation has no segmentation, or one of another image size.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise GroundingError(
            f"annotation {annotation.get('id')!r} of image {annotation.get('image_id')!r} has no segmentation; "
            "use an `instances` file (boxes, keypoints and captions files carry no masks)"
        )
    if isinstance(segmentation, dict) and tuple(segmentation["size"]) != tuple(size):
        raise GroundingError(
            f"annotation {annotation.get('id')!r} has a mask of (H, W) {tuple(segmentation['size'])} in an image of "
            f"{tuple(size)}; the image entry's height and width must be those of its masks"
        )
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, *size)
    return segmentation


def annotation_mask(annotation: dict[str, Any], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Mask of one annotation at the image's size (H, W)."""
    return rle.decode(annotation_rle(annotation, size)).astype(bool)


def coco_results(
    image_id: int, category_id: int, masks: Sequence[dict[str, Any]], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """COCO result dicts of one object's masks and their scores."""
    return [
        {"image_id": image_id, "category_id": category_id, "segmentation": mask, "score": float(score)}
        for mask, score in zip(masks, scores, strict=True)
    ]


def load_instances(path: str | Path, images_dir: str | Path = "", *, n_images: int = 0) -> CocoDataset:
    """Read a COCO `instances` JSON.

    Args:
        path: the JSON file.
        images_dir: folder that the images' `file_name`s are relative to; "" = `images` beside the JSON.
        n_images: keep the first so many images of the file; 0 keeps all.

    Raises:
        GroundingError: the file is missing, is not JSON, lacks a COCO section, or an annotation names an unknown image
            or category.
    """
    path = Path(path)
    content = read_json_object(path)
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise GroundingError(f"{path} lacks {', '.join(missing)}; give a COCO `instances` file")
    folder = Path(images_dir) if str(images_dir) else path.parent / "images"
    images = tuple(
        CocoImage(entry["id"], folder / entry["file_name"], (entry["height"], entry["width"]), entry.get("caption", ""))
        for entry in content["images"]
    )
    categories = {entry["id"]: entry["name"] for entry in content["categories"]}
    annotations = _group_by_image(path, images, categories, content["annotations"])
    return CocoDataset(path.stem, images, categories, annotations).head(n_images)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in an annotation file.

    Raises:
        GroundingError: the file is missing, is not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GroundingError(
            f"cannot read the annotations {path} ({error}); give the path of an annotation JSON"
        ) from error
    except ValueError as error:
        raise GroundingError(f"{path} is not a JSON file ({error}); give the path of an annotation JSON") from error
    if not isinstance(content, dict):
        raise GroundingError(f"{path} holds a {type(content).__name__}, not an object; give an annotation JSON")
    return content


def _group_by_image(
    path: Path, images: Sequence[CocoImage], categories: dict[int, str], entries: list[dict[str, Any]]
) -> dict[int, tuple[dict[str, Any], ...]]:
    grouped: dict[int, list[dict[str, Any]]] = {image.id: [] for image in images}
    for entry in entries:
        if entry.get("image_id") not in grouped or entry.get("category_id") not in categories:
            raise GroundingError(
                f"annotation {entry.get('id')!r} in {path} names image {entry.get('image_id')!r} and category "
                f"{entry.get('category_id')!r}, and one of them is not in the file; the file is incomplete"
            )
        grouped[entry["image_id"]].append(entry)
    return {image_id: tuple(group) for image_id, group in grouped.items()}
