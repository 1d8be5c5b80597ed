"""Predictions in GLaMM's format, one JSON for each image: ours written in it, those of any system read from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.gcg.dataset import GcgDataset, GcgImage
from analysis.gcg.masks import checked_rle
from core.atomic import write_atomically
from core.errors import GroundingError

if TYPE_CHECKING:
    from core.pipeline import Grounding

FIELDS = ("caption", "phrases", "pred_masks")


@dataclass(frozen=True)
class Prediction:
    """What a system says of one image.

    Attributes:
        caption: its text.
        phrases: the grounded ones.
        masks: compressed run-length codes, the phrases' in their order.
    """

    caption: str = ""
    phrases: tuple[str, ...] = ()
    masks: tuple[dict[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class PredictionFolder:
    """A folder with a file `{image id}.json` for each image, read one at a time.

    Attributes:
        path: the folder.
        dataset: whose images they are.
        missing: ids of images without a file; they count as answered with nothing.
    """

    path: Path
    dataset: GcgDataset
    missing: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[GcgImage, Prediction]]:
        """(image, prediction) in the dataset's order.

        Raises:
            GroundingError: a file that is not of the format; the message names it and the field.
        """
        absent = set(self.missing)
        for image in self.dataset.images:
            yield image, Prediction() if image.id in absent else read_prediction(_file(self.path, image.id), image)

    def describe(self) -> str:
        """How many of the images have a prediction."""
        there, told = len(self.dataset) - len(self.missing), ""
        if self.missing:
            shown = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
            told = f"; the other {len(self.missing)} count as answered with nothing ({shown})"
        return f"{there} of {len(self.dataset)} images have a prediction in {self.path}{told}."


def open_predictions(path: str | Path, dataset: GcgDataset) -> PredictionFolder:
    """The predictions of a folder.

    Raises:
        GroundingError: no such folder, or none of its files is of an image of the dataset.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise GroundingError(f"no folder of predictions at {path}; give one with a file {{image id}}.json per image")
    missing = tuple(image.id for image in dataset.images if not _file(folder, image.id).is_file())
    if len(missing) == len(dataset):
        raise GroundingError(
            f"none of the {len(dataset)} images of {dataset.name} has a prediction in {path}; "
            f"files are called like {dataset.images[0].id}.json"
        )
    return PredictionFolder(folder, dataset, missing)


def read_prediction(path: Path, image: GcgImage) -> Prediction:
    """One file: `{image_id: {"caption", "phrases", "pred_masks"}}`, or the inner object alone.

    Masks are run-length codes, compressed or not; further fields are passed over.

    Raises:
        GroundingError: not such a file, or a mask of another size than the image's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GroundingError(f"the prediction {path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise GroundingError(f"the prediction {path} holds a {type(content).__name__}, not an object")
    inner = next(iter(content.values()), None)
    if "caption" not in content and isinstance(inner, dict):
        content = inner
    absent = [name for name in FIELDS if name not in content]
    if absent:
        raise GroundingError(f"the prediction {path} lacks {', '.join(absent)}; it needs {', '.join(FIELDS)}")
    if not isinstance(content["caption"], str):
        raise GroundingError(f"the prediction {path}: caption is {str(content['caption'])[:40]!r}, not a text")
    for name, kind, what in (("phrases", str, "texts"), ("pred_masks", dict, "run-length codes")):
        value = content[name]
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            raise GroundingError(f"the prediction {path}: {name} is no list of {what}, but {str(value)[:40]!r}")
    masks = []
    for number, code in enumerate(content["pred_masks"]):
        try:
            masks.append(checked_rle(code, image.size))
        except GroundingError as error:
            raise GroundingError(f"the prediction {path}: pred_masks[{number}] cannot be used: {error}") from error
    return Prediction(content["caption"], tuple(content["phrases"]), tuple(masks))


def prediction_of(grounding: Grounding, *, every_mask: bool = False) -> Prediction:
    """The answer, its phrases and the mask of each.

    Args:
        grounding: the answer.
        every_mask: a phrase with several masks is there once for each, as the pilot study of the released code has it.

    Raises:
        GroundingError: phrases without a mask or with several.
    """
    numbers = sorted({len(masks) for masks in grounding.masks} - {1})
    if numbers and (numbers[0] == 0 or not every_mask):
        raise GroundingError(
            "grounded conversation generation takes one mask for each phrase, "
            f"and there are phrases with {numbers[0]}; ground with a segmenter, and with mask_choice 'last' or 'best'"
        )
    pairs = [
        (phrase.text, mask) for phrase, masks in zip(grounding.phrases, grounding.masks, strict=True) for mask in masks
    ]
    phrases, masks = (tuple(each) for each in zip(*pairs, strict=True)) if pairs else ((), ())
    return Prediction(grounding.generation.text, phrases, masks)


def write_predictions(
    records: Iterable[tuple[str, Grounding]], directory: str | Path, *, every_mask: bool = False
) -> Path:
    """Write records in GLaMM's format, `{image id}.json` each, for our scoring and for anybody's.

    An answer without a phrase gets a file, too.

    Args:
        records: (image id, grounding) pairs.
        directory: made if it is not there.
        every_mask: as in `prediction_of`.

    Raises:
        GroundingError: as `prediction_of`.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, grounding in records:
        found = prediction_of(grounding, every_mask=every_mask)
        content = {"caption": found.caption, "phrases": list(found.phrases), "pred_masks": list(found.masks)}
        write_atomically(_file(folder, image_id), json.dumps({image_id: content}).encode())
    return folder


def _file(folder: Path, image_id: str) -> Path:
    return folder / f"{image_id}.json"
