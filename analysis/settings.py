"""What a notebook's parameters mean: checked once, then turned into a dataset, options of core and a provenance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.scoring.coco import CocoDataset, load_instances
from analysis.scoring.matching import MATCHES, THRESHOLD
from analysis.tables import Provenance
from core.attention import AGGREGATIONS, NORMALIZATIONS
from core.errors import GroundingError
from core.masks import MASK_CHOICES

GEOMETRIES = ("pad", "processor")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # bundled in scikit-image's wheel
CHOICES = {
    "geometry": GEOMETRIES,
    "normalization": NORMALIZATIONS,
    "aggregation": AGGREGATIONS,
    "mask_choice": MASK_CHOICES,
    "match_by": MATCHES,
    "dtype": DTYPES,
}
AT_LEAST = {"n_images": 0, "max_new_tokens": 1, "seed": 0, "n_draws": 1}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The parameters that the notebooks share; each notebook sets those it has.

    Attributes:
        output_dir: folder of the records, figures and tables; made if it is not there.
        model, sam_checkpoint, spacy_model: "embedded", or what core's loaders take.
        dataset: COCO `instances` JSON; "" = embedded validation scenes, drawn here.
        images_dir: folder of its images; "" = `images` beside the JSON.
        n_images: images to use; 0 = all of a given dataset or folder.
        images: pictures without annotations instead of a dataset: a file or a folder.
        answer: text to ground instead of the model's own answer; "" lets the model answer.
        prompt, max_new_tokens, template: of the conversation; "" keeps the model's own template.
        geometry: "pad" to a square as the paper does, or the "processor"'s own.
        normalization, aggregation, mask_choice: as in `core.attend_and_segment`.
        match_by, category_threshold: as in `analysis.pilot_study.table.CategoryMatcher`.
        n_draws: random points per category behind the baseline's PAcc.
        seed: of the scenes, the random points and the bootstrap.
        device, dtype: where and in what precision the model runs.

    Raises:
        GroundingError: a value that cannot be used; the message says which values can.
    """

    output_dir: str
    model: str = "embedded"
    sam_checkpoint: str = "embedded"
    spacy_model: str = "embedded"
    dataset: str = ""
    images_dir: str = ""
    n_images: int = 0
    images: str = ""
    answer: str = ""
    prompt: str = "Describe the image in detail."
    max_new_tokens: int = 512
    template: str = ""
    geometry: str = "pad"
    normalization: str = "sequence"
    aggregation: str = "mean"
    mask_choice: str = "last"
    match_by: str = "head"
    category_threshold: float = THRESHOLD
    n_draws: int = 100
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise GroundingError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name, lowest in AT_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise GroundingError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        if not -1 <= self.category_threshold <= 1:
            raise GroundingError(f"category_threshold is {self.category_threshold}; cosine similarities lie in -1..1")
        if not self.dataset and not self.images and self.n_images == 0:
            raise GroundingError(
                "n_images is 0 (all images), but the embedded scenes have no end; give a number, or a dataset"
            )
        if not self.output_dir:
            raise GroundingError("output_dir is empty; give a folder for records, tables and figures")
        if not self.prompt.strip():
            raise GroundingError("prompt is empty; the paper asks 'Describe the image in detail.'")
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)

    def path(self, *parts: str) -> Path:
        """A path under the output directory."""
        return Path(self.output_dir, *parts)

    def open_dataset(self) -> CocoDataset:
        """The dataset asked for; embedded scenes are drawn into the output directory.

        Raises:
            GroundingError: the dataset cannot be read.
        """
        if self.dataset:
            return load_instances(self.dataset, self.images_dir, n_images=self.n_images)
        from embedded.scenes.dataset import write_dataset

        folder = self.path("data", f"val-seed{self.seed}")
        return load_instances(write_dataset(folder, split="val", n=self.n_images, seed=self.seed))

    def open_pictures(self, *, photographs: int = 0) -> dict[str, Path]:
        """Pictures by name: those of `images`, or embedded scenes; then so many of scikit-image's photographs.

        Raises:
            GroundingError: nothing at `images`, or photographs are asked for and scikit-image is not installed.
        """
        if self.images:
            found = find_pictures(self.images, limit=self.n_images)
        else:
            found = {f"scene_{record_id}": path for record_id, path in self.open_dataset().items()}
        return found | bundled_photographs(photographs)

    def data_name(self) -> str:
        """The data in words, for tables."""
        return Path(self.dataset or self.images).stem or f"embedded scenes (val, seed {self.seed})"

    def lmm_options(self) -> dict[str, Any]:
        """Keyword arguments of `core.load_lmm`."""
        options = {"device": self.device, "dtype": self.dtype, "geometry": self.geometry}
        return options | ({"template": self.template} if self.template else {})

    def ground_options(self) -> dict[str, Any]:
        """Keyword arguments of `core.run.ground_dataset` that decide what the records hold."""
        names = ("max_new_tokens", "normalization", "aggregation", "mask_choice")
        return {name: getattr(self, name) for name in names}

    def provenance(self, n_images: int, *, segmented: bool = True, **extra: Any) -> Provenance:
        """What made a table: model, data and the settings behind it; `segmented` is false for points alone."""
        names = ["prompt", "answer", "geometry", "normalization", "aggregation"]
        names += ["mask_choice", "sam_checkpoint"] if segmented else []
        shown = {name: getattr(self, name) for name in [*names, "spacy_model", "seed"]} | extra
        return Provenance(self.model, self.data_name(), n_images, shown)

    def run_config(self, **loaded: Any) -> dict[str, Any]:
        """The configuration of a run of records; `loaded` are `lmm`, `segmenter` and `nlp`."""
        from core.provenance import run_config

        data = self.dataset or self.images or self.data_name()
        options = self.ground_options() | {"data": data, "answer": self.answer}
        return run_config(prompt=self.prompt, seed=self.seed, **options, **loaded)

    def finish(self) -> Path:
        """Leave the marker that says that the notebook came to its end."""
        return mark_finished(self.output_dir)


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
