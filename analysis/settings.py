"""What a notebook's parameters mean: checked once, then turned into a dataset, options of core and a provenance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from analysis.scoring.coco import CocoDataset, load_instances
from analysis.scoring.matching import CategoryMatcher
from analysis.tables import Provenance
from core.errors import GroundingError
from core.families.base import GEOMETRIES
from core.lmm import load_lmm
from core.options import GroundOptions
from core.pipeline import refuse_without_effect
from core.planning import AUTO

DTYPES = ("auto", "float32", "bfloat16", "float16")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # bundled in scikit-image's wheel
LOADING = tuple(signature(load_lmm).parameters)[1:]
BATCH_SIZE = "batch_size"
GENERATION = {"max_new_tokens": 512}
Read = TypeVar("Read")


def read_parameters(kind: type[Read], names: Mapping[str, Any]) -> Read:
    """A dataclass of settings from a notebook's names: `settings = read_parameters(Settings, globals())`."""
    return kind(**{each.name: names[each.name] for each in fields(kind) if each.name in names})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parameters that the notebooks share; each notebook declares those it has.

    Attributes:
        output_dir: folder of the figures and tables; made if it is not there.
        runs_dir: folder of answers, embeddings and drawn scenes, which notebooks may share; "" = output_dir.
        model, sam_checkpoint, spacy_model: "embedded", or what core's loaders take.
        data: a COCO `instances` JSON, or pictures without annotations (a file or a folder); "" = embedded validation
            scenes, drawn here.
        images_dir: folder of a dataset's images; "" = `images` beside the JSON.
        n_images: images to use, the first so many; 0 = all of given data.
        prompt: what the model is asked.
        answer: text to ground instead of the model's own answer; "" lets the model answer.
        answers: file of answers that something else wrote, with their images and prompts, see `core.read_answers`;
            "" = none.
        generation: of the answer: `max_new_tokens` (512) and further options of `LMM.generate` (`do_sample`, `system`).
        preset, options: how answers are grounded: a name in `core.PRESETS`, and fields of `core.GroundOptions` that
            differ from it.
        loading: options of `core.load_lmm` (device, dtype, geometry, template, revision, device_map,
            attn_implementation, quantization); geometry is "pad" unless given, as in the paper. And `batch_size`,
            pictures that are answered together (1; "auto" takes as many of about the same length as memory holds).
        matching: of phrases to categories, see `analysis.scoring.matching.CategoryMatcher` (`by`, `threshold`).
        seed: of the scenes, the random points and the bootstrap.

    Raises:
        GroundingError: a value that cannot be used; the message says which values can.
    """

    usual_batch_size: ClassVar[int] = 1

    output_dir: str
    runs_dir: str = ""
    model: str = "embedded"
    sam_checkpoint: str = "embedded"
    spacy_model: str = "embedded"
    data: str = ""
    images_dir: str = ""
    n_images: int = 0
    prompt: str = "Describe the image in detail."
    answer: str = ""
    answers: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    preset: str = "paper"
    options: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    matching: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self.ground_options()
        self.matcher(nlp=None)
        check_names("loading", self.loading, (*LOADING, BATCH_SIZE))
        for name, known in {"geometry": GEOMETRIES, "dtype": DTYPES}.items():
            if self.loading.get(name, known[0]) not in known:
                raise GroundingError(f"{name} is {self.loading[name]!r}; choose one of {', '.join(known)}")
        limits = {"n_images": (self.n_images, 0), "seed": (self.seed, 0)}
        if self.batch_size != AUTO:
            limits[BATCH_SIZE] = (self.batch_size, 1)
        for name, (value, lowest) in (limits | {"max_new_tokens": (self.answering()["max_new_tokens"], 1)}).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise GroundingError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        if not self.data and not self.answers and self.n_images == 0:
            raise GroundingError("n_images is 0 (all), but the embedded scenes have no end; give a number, or data")
        if not self.output_dir:
            raise GroundingError("output_dir is empty; give a folder for records, tables and figures")
        if not self.prompt.strip():
            raise GroundingError("prompt is empty; the paper asks 'Describe the image in detail.'")
        if self.answer and self.answers:
            raise GroundingError("answer and answers are both given; give one text for all, or a file of answers")
        if self.answer or self.answers:
            refuse_without_effect(self.run_options()["generation_options"])
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)

    def path(self, *parts: str) -> Path:
        """A path under the output directory."""
        return Path(self.output_dir, *parts)

    def shared(self, *parts: str) -> Path:
        """A path under the folder that this notebook shares with others."""
        return Path(self.runs_dir or self.output_dir, *parts)

    def answering(self) -> dict[str, Any]:
        """Keyword arguments of `LMM.generate`: `max_new_tokens` and what else is given."""
        return GENERATION | self.generation

    def open_dataset(self) -> CocoDataset:
        """The dataset asked for; embedded scenes are drawn into the shared folder.

        Raises:
            GroundingError: the dataset cannot be read, or the data are pictures without annotations.
        """
        if self.data:
            if Path(self.data).suffix.lower() in PICTURES or Path(self.data).is_dir():
                raise GroundingError(
                    f"data is {self.data!r}, pictures alone; this notebook needs a COCO instances JSON"
                )
            return load_instances(self.data, self.images_dir, n_images=self.n_images)
        from embedded.scenes.dataset import write_dataset

        folder = self.shared("data", f"val-seed{self.seed}")
        return load_instances(write_dataset(folder, split="val", n=self.n_images, seed=self.seed))

    def open_pictures(self, *, photographs: int = 0) -> dict[str, Path]:
        """Pictures by name: those of `data`, or embedded scenes; then so many of scikit-image's photographs.

        Raises:
            GroundingError: nothing at `data`, or photographs are asked for and scikit-image is not installed.
        """
        if self.data and Path(self.data).suffix.lower() != ".json":
            found = find_pictures(self.data, limit=self.n_images)
        else:
            kind = "image" if self.data else "scene"
            found = {f"{kind}_{record_id}": path for record_id, path in self.open_dataset().items()}
        return found | bundled_photographs(photographs)

    def data_name(self) -> str:
        """The data in words, for tables."""
        if self.answers:
            return f"answers of {Path(self.answers).name}"
        return Path(self.data).stem or f"embedded scenes (val, seed {self.seed})"

    def lmm_options(self) -> dict[str, Any]:
        """Keyword arguments of `core.load_lmm`."""
        return {"geometry": "pad"} | {name: value for name, value in self.loading.items() if name != BATCH_SIZE}

    @property
    def batch_size(self) -> int | str:
        """Pictures that are answered together, or "auto"."""
        return self.loading.get(BATCH_SIZE, self.usual_batch_size)

    def segmenter_options(self) -> dict[str, Any]:
        """Keyword arguments of `core.load_segmenter`: it goes where the model goes."""
        return {"device": self.loading.get("device", "auto")}

    def ground_options(self, **changes: Any) -> GroundOptions:
        """The preset with this run's options.

        Raises:
            GroundingError: an unknown preset, option or value.
        """
        return GroundOptions.of(self.preset, **self.options | changes)

    def run_options(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of `core.ground_dataset` that decide what the records hold."""
        further = self.answering()
        longest = further.pop("max_new_tokens")
        return {"options": self.ground_options(**changes), "max_new_tokens": longest, "generation_options": further}

    def matcher(self, nlp: Any) -> CategoryMatcher:
        """What matches phrases to categories.

        Raises:
            GroundingError: an unknown option or value.
        """
        check_names("matching", self.matching, ("by", "threshold"))
        return CategoryMatcher(nlp, **self.matching)

    def provenance(self, n_images: int, *, segmented: bool = True, matched: bool = False, **extra: Any) -> Provenance:
        """What made a table: model, data and the settings behind it.

        Args:
            segmented: false for points alone.
            matched: phrases were matched to categories.
            extra: further settings.
        """
        shown = (
            {"prompt": self.prompt, "answer": self.answer, "answers": self.answers}
            | self.answering()
            | self.lmm_options()
        )
        shown |= {"preset": self.preset} | self.options
        if segmented:
            shown["sam_checkpoint"] = self.sam_checkpoint
        if matched:
            matcher = self.matcher(nlp=None)
            shown |= {"match_by": matcher.by, "category_threshold": matcher.threshold}
        return Provenance(
            self.model, self.data_name(), n_images, shown | {"spacy_model": self.spacy_model, "seed": self.seed} | extra
        )

    def run_config(self, *, options: GroundOptions | None = None, **loaded: Any) -> dict[str, Any]:
        """The configuration of a run of records; `loaded` are `lmm`, `segmenter` and `nlp`."""
        from core.provenance import run_config

        if self.answers:
            loaded["answers"] = hashlib.sha256(Path(self.answers).read_bytes()).hexdigest()[:16]
        return run_config(
            prompt=self.prompt,
            seed=self.seed,
            options=self.ground_options() if options is None else options,
            generation=self.answering(),
            data=self.data or self.data_name(),
            answer=self.answer,
            **loaded,
        )

    def finish(self) -> Path:
        """Leave the marker that says that the notebook came to its end."""
        return mark_finished(self.output_dir)


def check_names(what: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys of a notebook's mapping that nothing reads.

    Raises:
        GroundingError: an unknown key.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise GroundingError(f"{what} has no {', '.join(unknown)}; it takes {', '.join(known)}")


def check_folders(name: str, own: Iterable[str], folders: Mapping[str, Any]) -> dict[str, str]:
    """Folders of what was made elsewhere, by their rows' names.

    Args:
        name: of the parameter.
        own: names of our own rows.
        folders: "label: folder" pairs.

    Raises:
        GroundingError: a label or a folder that is no text or empty, or the label of one of our own rows.
    """
    for label, folder in folders.items():
        if not all(isinstance(text, str) and text.strip() for text in (label, folder)):
            raise GroundingError(f"{name} has {label!r}: {folder!r}; give `label: folder` pairs of two texts")
        if label in own:
            raise GroundingError(f"{name} has the label {label!r}, which is a row of our own; choose another")
    return dict(folders)


def folder_name(label: str) -> str:
    """A label as the name of a folder: its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


def mark_finished(output_dir: str | Path) -> Path:
    """Leave the file DONE in a notebook's folder, by which the report knows that the notebook came to its end."""
    marker = Path(output_dir, "DONE")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("finished\n", encoding="utf-8")
    return marker


def find_pictures(source: str, *, limit: int = 0) -> dict[str, Path]:
    """One picture, or a folder's pictures in the order of their names; by name without ending where that is unique.

    Args:
        source: a file or a folder.
        limit: keep the first so many; 0 keeps all.

    Raises:
        GroundingError: no picture there.
    """
    path = Path(source)
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURES) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise GroundingError(
            f"no pictures at {source!r}; give a picture, or a folder with some of {', '.join(PICTURES)}"
        )
    stems = [each.stem for each in found]
    names = [each.stem if stems.count(each.stem) == 1 else each.name for each in found]
    return dict(list(zip(names, found, strict=True))[: limit or None])


def bundled_photographs(number: int) -> dict[str, Path]:
    """The first so many of `PHOTOGRAPHS`, files of the installed scikit-image.

    Raises:
        GroundingError: scikit-image is not installed, or fewer photographs are there.
    """
    if number == 0:
        return {}
    spec = find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else None
    found = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()] if folder else []
    if not 0 < number <= len(found):
        raise GroundingError(
            f"{number} photographs were asked for and {len(found)} are here; they come with scikit-image "
            f"(`pip install scikit-image`): choose at most {len(PHOTOGRAPHS)}, or 0 for none"
        )
    return {path.stem: path for path in found[:number]}


def describe_run(store: Any, ids: Iterable[str], what: str = "a grounded answer") -> str:
    """How many of the images have a record, and why others have none."""
    wanted = list(ids)
    held, errors = set(store.ids()), store.errors()
    failed = [f"{record_id}: {errors[record_id]}" for record_id in wanted if record_id in errors]
    told = f"; {len(failed)} could not be used ({'; '.join(failed[:3])})" if failed else ""
    return f"{len(held.intersection(wanted))} of {len(wanted)} images have {what}{told}."
