"""Lists of challenges: pictures, what is asked about each, and, where there are annotations, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from analysis.scoring.coco import CocoDataset, load_instances
from analysis.settings import Settings
from core.errors import GroundingError

FIELDS = ("image", "challenge", "question")
ORDINARY, ABSENT, PRESENT = "ordinary", "absent", "present"
TITLES = {
    ORDINARY: "ordinary scenes",
    "unusual": "unusual content",
    ABSENT: "asked about something absent",
    PRESENT: "asked about something present",
    "rare": "rare concepts",
    "shifted": "shifted domain",
}


@dataclass(frozen=True)
class Challenge:
    """One picture and its question.

    Attributes:
        id: of its record; of its annotations, if there are any.
        path: the picture.
        kind: the challenge that it is of.
        question: what the model is asked.
        asked: the thing that a question names, where it names one.
        note: for the figure.
    """

    id: str
    path: Path
    kind: str
    question: str
    asked: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """The challenge in words."""
        return TITLES.get(self.kind, self.kind)


@dataclass(frozen=True)
class Challenges:
    """A list of challenges with the truth behind it.

    Attributes:
        items: in the order of the file.
        truth: annotations of the same pictures; None where there are none, and then nothing is scored.
    """

    items: tuple[Challenge, ...]
    truth: CocoDataset | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The challenges in the order of their first item."""
        return tuple(dict.fromkeys(item.kind for item in self.items))

    def of(self, kind: str) -> tuple[Challenge, ...]:
        """The items of one challenge."""
        return tuple(item for item in self.items if item.kind == kind)

    def truth_of(self, kind: str) -> CocoDataset | None:
        """The annotations of one challenge's pictures."""
        if self.truth is None:
            return None
        wanted = {item.id for item in self.of(kind)}
        return replace(self.truth, images=tuple(image for image in self.truth.images if str(image.id) in wanted))


def open_challenges(settings: Settings) -> Challenges:
    """The list that the settings name, or embedded scenes of all four kinds, `n_images` of each.

    Raises:
        GroundingError: the list cannot be read.
    """
    if settings.data:
        return load_challenges(settings.data)
    from embedded.scenes.challenges import write_challenges

    folder = settings.shared("data", f"challenges-seed{settings.seed}-{settings.n_images}")
    write_challenges(folder, n=settings.n_images, seed=settings.seed)
    return load_challenges(folder / "challenges.json")


def load_challenges(path: str | Path) -> Challenges:
    """Read a list of challenges.

    Args:
        path: a YAML or JSON list of mappings with `image` (relative to the list), `challenge` (any word; those of
            `TITLES` have one in full) and `question`; and, where wanted, `id`, `asked`, `note`. A COCO file
            `instances.json` beside it, with these ids, makes numbers possible.

    Raises:
        GroundingError: no such file, or one that is not of this form; the message names the item.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise GroundingError(f"the list of challenges {path} cannot be read ({error})") from error
    if not isinstance(content, list) or not content:
        raise GroundingError(
            f"{path} must hold a list of `{{image, challenge, question}}` mappings, got {type(content).__name__}"
        )
    items = tuple(_item(number, each, path) for number, each in enumerate(content))
    ids = [item.id for item in items]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise GroundingError(f"{path} has the ids {', '.join(twice)} more than once")
    instances = path.parent / "instances.json"
    return Challenges(items, load_instances(instances) if instances.is_file() else None)


def _item(number: int, each: Any, path: Path) -> Challenge:
    if not isinstance(each, Mapping):
        raise GroundingError(f"item {number} of {path} is {each!r}; give `image`, `challenge` and `question`")
    absent = [name for name in FIELDS if not isinstance(each.get(name), str) or not each[name].strip()]
    unknown = sorted(set(map(str, each)) - {*FIELDS, "id", "asked", "note"})
    if absent or unknown:
        wrong = f"lacks {', '.join(absent)}" if absent else f"has the unknown {', '.join(unknown)}"
        raise GroundingError(f"item {number} of {path} {wrong}; it takes {', '.join(FIELDS)}, id, asked and note")
    picture = path.parent / each["image"]
    if not picture.is_file():
        raise GroundingError(f"item {number} of {path}: there is no picture {picture}")
    further = {name: str(each.get(name, "")) for name in ("asked", "note")}
    return Challenge(str(each.get("id", number)), picture, each["challenge"], each["question"], **further)


def read_answers(files: Mapping[str, Any], challenges: Challenges) -> dict[str, dict[str, str]]:
    """Other systems' answers: label to id to text, from JSON or YAML files of `id: text`.

    Raises:
        GroundingError: a file that is not of this form, or answers that belong to no item.
    """
    known, found = {item.id for item in challenges.items}, {}
    for label, file in files.items():
        try:
            content = yaml.safe_load(Path(str(file)).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise GroundingError(f"other_answers {label!r}: {file} cannot be read ({error})") from error
        if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
            raise GroundingError(f"other_answers {label!r}: {file} must hold `id: text` pairs")
        own = {str(key): text for key, text in content.items()}
        if foreign := sorted(set(own) - known)[:5]:
            raise GroundingError(f"other_answers {label!r}: {file} has the ids {', '.join(foreign)}, which no item has")
        found[str(label)] = own
    return found


def shown_items(challenges: Challenges, held: Sequence[str], *, each: int = 1) -> list[Challenge]:
    """The first items of every challenge but the ordinary ones and the control question, that have a record."""
    kinds = [kind for kind in challenges.kinds if kind not in (ORDINARY, PRESENT)]
    return [item for kind in kinds for item in [i for i in challenges.of(kind) if i.id in held][:each]]
