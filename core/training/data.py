"""LLaVA's training JSON: records of an `image` and `conversations`, checked once, opened one by one."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from core.errors import GroundingError
from core.images import load_image
from core.prompts import IMAGE
from core.training.templates import IGNORE, tokenize

log = logging.getLogger(__name__)
MISSING = ("skip", "raise")
ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(frozen=True)
class Sample:
    """One record: `image` is a file, or None for text only; `turns` are (question, answer) pairs.

    The last answer is None if there is none. `marked` is the number of the question that the picture stands in.
    """

    id: str
    image: Path | None
    turns: tuple[tuple[str, str | None], ...]
    marked: int | None = 0

    @property
    def length(self) -> int:
        """Words of all turns and the picture's mark, the measure by which samples are grouped as in LLaVA."""
        return sum(len(text.split()) for turn in self.turns for text in turn if text) + (self.image is not None)


def read_samples(path: str | Path, images: str | Path | None = None) -> list[Sample]:
    """The records of a LLaVA-format JSON file, read as LLaVA reads them.

    A picture stays in the question that marks it, and the words around the mark lose their outer white space; other
    texts are left as they are. Without a mark only the template "plain" shows the picture. A conversation that ends
    with a question is kept, but nothing of it is learnt.

    Args:
        path: a JSON list of {"id", "image" (absent for text only), "conversations": [{"from", "value"}...]}.
        images: folder that the `image` paths are relative to; by default `images` beside the file, or else its folder.

    Raises:
        GroundingError: no such file, not that format, a conversation that does not alternate, or a picture marked in an
            answer or twice, where LLaVA would mistake the next sample's picture for it; the record is named.

    Source: LLaVA's `preprocess_multimodal` and `LazySupervisedDataset`.
    """
    path = Path(path)
    if not path.is_file():
        raise GroundingError(f"the training data {str(path)!r} does not exist; give a LLaVA-format JSON file")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GroundingError(f"{str(path)!r} is not JSON ({error}); export it again") from error
    if not isinstance(records, list) or not records:
        raise GroundingError(f"{str(path)!r} holds no list of records; LLaVA's format is a non-empty JSON list")
    beside = path.parent / "images"
    folder = Path(images) if images is not None else beside if beside.is_dir() else path.parent
    return [_sample(record, number, folder) for number, record in enumerate(records)]


def _sample(record: Any, number: int, folder: Path) -> Sample:
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise GroundingError(f"record {number} has no list of conversations; see LLaVA's training format")
    name = str(record.get("id", number))
    picture = record.get("image")
    if picture is not None and not isinstance(picture, str):
        raise GroundingError(f"record {name!r}: image is {picture!r}; one path per record is supported")
    said = record["conversations"]
    if said and isinstance(said[0], dict) and ROLES.get(said[0].get("from")) == 1:
        said = said[1:]  # an answer before any question, as LLaVA does
    texts = [_text(part, role=place % 2, name=name) for place, part in enumerate(said)]
    if not texts:
        raise GroundingError(f"record {name!r} has no question; see LLaVA's training format")
    marks = [text.count(IMAGE) for text in texts]
    if any(marks[1::2]) or sum(map(bool, marks)) > 1 or (any(marks) and picture is None):
        raise GroundingError(
            f"record {name!r} has {IMAGE!r} in an answer, in several questions, or without an image; mark the "
            "picture in one question"
        )
    questions = [text.replace(IMAGE, "").strip() if IMAGE in text else text for text in texts[::2]]
    turns = tuple(zip_longest(questions, texts[1::2]))
    marked = next((place // 2 for place, count in enumerate(marks) if count), None)
    return Sample(name, None if picture is None else folder / picture, turns, marked)


def _text(part: Any, *, role: int, name: str) -> str:
    wanted = ("human", "gpt")[role]
    if not isinstance(part, dict) or ROLES.get(part.get("from")) != role or not isinstance(part.get("value"), str):
        raise GroundingError(f"record {name!r}: expected a text from {wanted!r}, found {str(part)[:80]!r}")
    return part["value"]


class ConversationData(Dataset):
    """Samples as token ids, labels and pixels; a picture that cannot be read leaves its sample without loss.

    Args:
        samples: from `read_samples`.
        processor: the model's LlavaProcessor, whose image token is "<image>"; the dataset's own `processor` brings
            pictures to a square as `pad` says.
        template, max_length, pad: as in `core.training.recipes.Recipe`.
        missing: "skip" notes an unreadable picture and goes on; "raise" stops.
        skipped: JSON-lines file that such records are noted in.

    Raises:
        GroundingError: an unknown `missing`; a `max_length` in which a picture does not fit. From an item, with
            missing="raise", an unreadable picture; the record is named.
    """

    def __init__(
        self,
        samples: list[Sample],
        processor: Any,
        *,
        template: str,
        max_length: int = 2048,
        pad: bool = True,
        missing: str = "skip",
        skipped: Path | None = None,
    ):
        from core.encoders.llava import with_square

        if missing not in MISSING:
            raise GroundingError(f"unknown missing {missing!r}; use one of {', '.join(MISSING)}")
        self.samples, self.processor = samples, with_square(processor, "pad" if pad else "crop")
        self.template, self.max_length = template, max_length
        self.missing, self.skipped = missing, skipped
        self.blank, self.visual_tokens = blank_image(self.processor)
        if self.visual_tokens >= max_length:
            raise GroundingError(
                f"a picture has {self.visual_tokens} visual tokens, which do not fit into max_length {max_length}; "
                "raise max_length"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """ids and labels int64 [s], and pixel_values [3, H, W] or None."""
        sample = self.samples[number]
        pixels, broken = None, False
        if self.shows(sample):
            try:
                pixels = self._pixels(sample.image)
            except GroundingError as error:
                if self.missing == "raise":
                    raise GroundingError(f"record {sample.id!r}: {error}") from error
                self._note(sample, error)
                broken = True
        tokens = self.tokens(sample, with_image=pixels is not None)
        labels = torch.full_like(tokens.labels, IGNORE) if broken else tokens.labels
        return {"input_ids": tokens.ids, "labels": labels, "pixel_values": pixels}

    def shows(self, sample: Sample) -> bool:
        """Whether the model sees a picture with this sample."""
        return sample.image is not None and (sample.marked is not None or self.template == "plain")

    def tokens(self, sample: Sample, *, with_image: bool):
        """`core.training.templates.Tokens` of a sample, without opening its picture."""
        return tokenize(
            sample.turns,
            self.processor.tokenizer,
            template=self.template,
            visual_tokens=self.visual_tokens if with_image else 0,
            picture=sample.marked,
            max_length=self.max_length,
        )

    def _pixels(self, path: Path) -> torch.Tensor:
        return self.processor.image_processor(load_image(path), return_tensors="pt")["pixel_values"][0]

    def _note(self, sample: Sample, error: GroundingError) -> None:
        log.warning("record %r is skipped: %s", sample.id, error)
        if self.skipped is not None:
            line = json.dumps({"id": sample.id, "image": str(sample.image), "error": str(error)})
            with self.skipped.open("a", encoding="utf-8") as file:  # one short write: whole lines from every worker
                file.write(line + "\n")


def blank_image(processor: Any) -> tuple[torch.Tensor, int]:
    """(pixel values [3, H, W] of a grey square, its number of visual tokens)."""
    side = max(processor.image_processor.crop_size["height"], 1)
    grey = Image.new("RGB", (side, side), (127, 127, 127))
    inputs = processor(images=[grey], text=[processor.image_token], return_tensors="pt")
    token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return inputs["pixel_values"][0], int((inputs["input_ids"] == token).sum())
