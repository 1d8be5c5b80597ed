"""What the conversations are about: pictures, what is asked about each, and the answers that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.settings import Settings
from core.answer_files import GivenAnswer, read_answers
from core.answers import asked_prompts, replayable


@dataclass(frozen=True)
class Conversations:
    """Pictures by name with the question about each.

    Attributes:
        pictures: what `core.load_image` opens.
        prompts: the question about each picture.
        text: one answer for all, "" for none.
        given: answers that something else wrote, one a picture.
        file: where those were read.
    """

    pictures: Mapping[str, Any]
    prompts: Mapping[str, str]
    text: str = ""
    given: tuple[GivenAnswer, ...] = ()
    file: str = ""

    def answers(self, lmm: Any) -> dict[str, Any] | None:
        """Answers for `core.ground_dataset`; None to let the model answer."""
        if self.given:
            return {each.id: replayable(each, lmm) for each in self.given}
        return dict.fromkeys(self.pictures, self.text) if self.text else None

    def __str__(self) -> str:
        if not self.given:
            return ", ".join(self.pictures)
        writers = ", ".join(dict.fromkeys(each.writer or "an unnamed model" for each in self.given))
        told = f"{len(self.given)} answers of {Path(self.file).name}, written by {writers}."
        return (
            f"{told} They are replayed with `model`: the maps, points and masks are those of its open "
            "weights, not of what wrote the answers."
        )


def open_conversations(settings: Settings, *, photographs: int = 0) -> Conversations:
    """The pictures of the settings with their prompt; or those of their file of answers, the first so many.

    Args:
        settings: of the notebook.
        photographs: of scikit-image's photographs to add, without a file of answers.

    Raises:
        GroundingError: pictures or answers that cannot be read, or an answer without a prompt.
    """
    if not settings.answers:
        pictures = settings.open_pictures(photographs=photographs)
        return Conversations(pictures, dict.fromkeys(pictures, settings.prompt), settings.answer)
    given = read_answers(settings.answers, images=settings.images_dir or None)[: settings.n_images or None]
    pictures = {each.id: each.image for each in given}
    return Conversations(pictures, asked_prompts(given, settings.prompt), given=given, file=settings.answers)
