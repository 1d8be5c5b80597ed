"""The runs behind Tables 5 and 6 at embedded scale, and the record of their losses that is shipped."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.atomic import write_atomically
from core.claim import read_object
from core.errors import GroundingError
from core.training.loss_log import read_losses
from embedded.encoder_study import two_stages
from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.probes import read_probes
from embedded.encoder_study.two_stages import StageRecipe, TrainingData, run_stage
from embedded.encoder_study.variants import TABLE5, TABLE6, Parts
from embedded.scenes.pictures import training_scenes

log = logging.getLogger(__name__)
RECORD = Path(__file__).parents[1] / "recorded" / "losses.json"
SCENES = 16_000  # of the training split, drawn for the variants
HELD_OUT = 500  # the last of them, which no stage sees
BIN = 10  # steps whose mean loss is one value of the record
# that the runs read
ENCODERS = "CLIP that knows places, DINO taught by contrast, U-Net whose up block 2 is aligned with shapes"


def training_data(work: Path, parts: Parts, *, workers: int = 1) -> TrainingData:
    """The training scenes, drawn on first use, with their cache of features under `work`."""
    pixels, tags, texts = training_scenes(SCENES, side=160, seed=0, cache=work / "scenes160.pt", workers=workers)
    cache = FeatureCache(work / "features", parts, pixels)
    return TrainingData(texts, tags, cache, held_out=range(SCENES - HELD_OUT, SCENES))


def run_folder(work: Path, variant: str, seed: int, stage: int) -> Path:
    """Where a run lives."""
    return work / "variants" / variant / f"seed{seed}" / f"stage{stage}"


def run_stage_one(
    work: Path, data: TrainingData, runs: Iterable[tuple[str, int]], *, recipe: StageRecipe | None = None
) -> list[Path]:
    """Stage 1 for (variant, seed) pairs; finished runs are not repeated. Returns the runs' folders."""
    recipe, folders = recipe or two_stages.STAGE1, []
    for variant, seed in runs:
        folders.append(run_folder(work, variant, seed, recipe.stage))
        run_stage(variant, data, folders[-1], recipe, seed=seed)
    return folders


def ship(model: Path, output: Path) -> None:
    """Copies a run's model and processor with all weights in float16, half the size of what was trained."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from core.encoders import register_encoders

    register_encoders()
    LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float16).save_pretrained(output)
    AutoProcessor.from_pretrained(model).save_pretrained(output)


def record(work: Path, file: Path = RECORD, *, stages: tuple[int, ...] = (1, 2), join: bool = False) -> Path:
    """Gathers the losses of all finished runs and the probes under `work` into one JSON file.

    Args:
        join: keep the runs and probes that the file holds and `work` does not.

    Raises:
        GroundingError: there is no finished run; those to join were computed with other encoders or libraries; the
            runs are not all of the same parts.
    """
    content = gather(work, stages=stages)
    if join and file.is_file():
        content = joined(read_object(file), content)
    refuse_mixed_parts(_titled(content["runs"]))
    return write_record(content, file)


def refuse_mixed_parts(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuses (title, run) pairs of which two were trained with the same part in different weights.

    Such runs do not compare: with another language model underneath, CLIP's stage-1 loss moved by a tenth.

    Args:
        runs: each with "parts", as `Parts.fingerprints` has them; what says nothing of its parts passes.

    Raises:
        GroundingError: two differ.
    """
    seen: dict[str, tuple[str, str]] = {}
    for title, run in runs:
        for part, found in run.get("parts", {}).items():
            other, wanted = seen.setdefault(part, (title, found))
            if found != wanted:
                raise GroundingError(
                    f"{title} was trained with another {part} ({found}) than {other} ({wanted}), so they do not "
                    "compare; train both with one, or write one of them to a record of its own"
                )


def joined(held: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A record with another's runs and probes, which replace those of the same variant, seed and stage.

    Raises:
        GroundingError: they were computed with other encoders or libraries.
    """

    def run_key(run: dict[str, Any]) -> tuple[str, int, int]:
        return run["variant"], run["seed"], run["recipe"]["stage"]

    _refuse_other_head(held, found)
    runs = {run_key(run): run for run in [*held["runs"], *found["runs"]]}
    probes = {row["variant"]: row for row in [*held.get("probes", []), *found["probes"]]}
    order = [name for name in found["variants"] if name in probes]
    return {**found, "runs": [runs[key] for key in sorted(runs)], "probes": [probes[name] for name in order]}


def refuse_unlike(file: Path = RECORD, parts: Mapping[str, str] | None = None) -> None:
    """Refuses a record that runs computed here and now cannot join, before they are trained.

    Args:
        parts: the fingerprints of what they would be trained from.

    Raises:
        GroundingError: it was computed with other encoders or libraries, or from other parts.
    """
    if file.is_file():
        held = read_object(file)
        _refuse_other_head(held, _head())
        refuse_mixed_parts([*_titled(held["runs"]), ("a new run", {"parts": parts or {}})])


def _titled(runs: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"{run['variant']}, seed {run['seed']}", run) for run in runs]


def _refuse_other_head(held: dict[str, Any], found: dict[str, Any]) -> None:
    differing = [key for key in _head() if held.get(key) != found.get(key)]
    if differing:
        told = ", ".join(f"{key} {held.get(key)} and {found.get(key)}" for key in differing)
        raise GroundingError(f"losses of {told} do not compare; write them to a record of their own")


def _head() -> dict[str, Any]:
    """What must be equal for losses to compare."""
    return {"loss_bin": BIN, "encoders": ENCODERS, **environment()}


def write_record(content: Any, file: Path) -> Path:
    """Writes what was measured as indented JSON, whole or not at all; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
    return file


def gather(work: Path, *, stages: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """What `record` writes: the finished runs and probes under `work` and what they were computed with.

    Raises:
        GroundingError: there is no finished run.
    """
    runs = [_read_run(result.parent) for result in sorted(work.glob("variants/*/seed*/stage*/result.json"))]
    runs = [run for run in runs if run["recipe"]["stage"] in stages]
    if not runs:
        raise GroundingError(f"no finished run under {str(work)!r}; `make embedded` trains the variants")
    variants = {variant.name: asdict(variant) for variant in TABLE5 + TABLE6}
    return {"runs": runs, **_head(), "variants": variants, "probes": read_probes(work)}


def environment() -> dict[str, Any]:
    """What the losses were computed with."""
    import diffusers
    import transformers

    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
        "processor": platform.machine(),
    }


def _read_run(folder: Path) -> dict[str, Any]:
    """A run's result with its losses, averaged over `BIN` steps."""
    losses = [row["loss"] for row in read_losses(folder)]
    bins = [sum(losses[i : i + BIN]) / len(losses[i : i + BIN]) for i in range(0, len(losses), BIN)]
    return {**json.loads((folder / "result.json").read_text()), "losses": [round(value, 4) for value in bins]}
