"""Images with what is true of them: captions, the phrases that are grounded, and the phrases' masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import GroundingError


@dataclass(frozen=True)
class GcgImage:
    """One image and what is true of it.

    Attributes:
        id: as text, however the files write it.
        path: its picture.
        size: (H, W) in pixels, of the masks or, without any, as a file says; None where none does.
        captions: reference texts.
        labels: the phrases that have masks, those of the first caption.
        masks: compressed run-length codes, the labels' in their order.
        crowds: whether a mask is of a crowd.
    """

    id: str
    path: Path
    size: tuple[int, int] | None
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    masks: tuple[dict[str, Any], ...] = field(repr=False)
    crowds: tuple[bool, ...]


@dataclass(frozen=True)
class GcgDataset:
    """Images in the order of the caption file.

    Attributes:
        name: for tables.
        images: those with captions.
        ranks: place of each image in the order of the files' own ids, by which COCO's evaluator ranks equal scores.
        left_out: masks of images that the caption file does not list.
    """

    name: str
    images: tuple[GcgImage, ...]
    ranks: tuple[int, ...]
    left_out: int = 0

    @cached_property
    def _by_id(self) -> dict[str, GcgImage]:
        return {image.id: image for image in self.images}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, image_id: int | str) -> GcgImage:
        """The image with this id.

        Raises:
            GroundingError: no such image.
        """
        if str(image_id) not in self._by_id:
            raise GroundingError(f"dataset {self.name!r} has no image with id {image_id!r} among its {len(self)}")
        return self._by_id[str(image_id)]

    def items(self) -> list[tuple[str, Path]]:
        """(record id, image file) pairs, as `core.ground_dataset` takes them."""
        return [(image.id, image.path) for image in self.images]

    def records(self, store: Any) -> Iterator[tuple[str, Any]]:
        """(record id, record) of the images that a store holds, in the dataset's order, one at a time."""
        held = set(store.ids())
        return ((image.id, store.read(image.id)) for image in self.images if image.id in held)

    def head(self, n: int) -> GcgDataset:
        """The first `n` images (0 keeps all)."""
        return self if n == 0 else replace(self, images=self.images[:n], ranks=self.ranks[:n])

    def uneven(self) -> list[str]:
        """Ids of images with more phrases than masks, or fewer."""
        return [image.id for image in self.images if len(image.labels) != len(image.masks)]

    def describe(self) -> str:
        """How many images, phrases and masks there are, and what is odd about them."""
        phrases, masks = (sum(len(getattr(image, name)) for image in self.images) for name in ("labels", "masks"))
        crowds, bare = sum(map(sum, (i.crowds for i in self.images))), sum(not image.labels for image in self.images)
        told = f"{self.name}: {len(self)} images, {phrases} phrases, {masks} masks"
        odd = {
            f"{crowds} of the masks are of crowds": crowds,
            f"{bare} images have no phrase": bare,
            f"{len(self.uneven())} images have more phrases than masks, or fewer": len(self.uneven()),
            f"{self.left_out} masks are of images without a caption and are left out": self.left_out,
        }
        return "; ".join([told, *(text for text, number in odd.items() if number)]) + "."
