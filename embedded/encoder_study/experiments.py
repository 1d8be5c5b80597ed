"""The runs behind Tables 5 and 6 at embedded scale, and the record of their losses that is shipped."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.atomic import write_atomically
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
ENCODERS = "CLIP that knows places, DINO taught by contrast, U-Net aligned with shapes"  # that the runs read


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


def planned_runs(*, seeds5: int = 3, seeds6: int = 3) -> list[tuple[str, int]]:
    """(variant, seed) of both tables, all variants of one seed before the next seed."""
    runs = [(variant.name, seed) for seed in range(seeds5) for variant in TABLE5]
    runs += [(variant.name, seed) for seed in range(seeds6) for variant in TABLE6]
    return list(dict.fromkeys(runs))


def record(work: Path, file: Path = RECORD, *, stages: tuple[int, ...] = (1, 2)) -> Path:
    """Gathers the losses of all finished runs and the probes under `work` into one JSON file.

    Raises:
        GroundingError: there is no finished run.
    """
    return write_record(gather(work, stages=stages), file)


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
    head = {"loss_bin": BIN, "encoders": ENCODERS, **environment()}
    return {"runs": runs, **head, "variants": variants, "probes": read_probes(work)}


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
