"""What the parameters of the training notebook mean, and the same run as shell commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import torch

from analysis.settings import check_names, mark_finished
from analysis.tables import Provenance
from core.errors import GroundingError
from core.training.budget import GIB, DryRun
from core.training.recipes import RECIPES, Recipe, stage_recipe
from core.training.run import RunOptions

DTYPES = ("float32", "bfloat16", "float16")
PROJECTORS = ("new", "kept")
PARTS = {"language_model": "", "clip": "", "diffusion": "", "encoder": {}, "projector": "new", "dtype": "float32"}
DATA = ("stage_1", "stage_2", "images")
QUESTION = {"image": "", "prompt": "Describe the image in detail.", "max_new_tokens": 512}
WHICH = {"both": (1, 2), "1": (1,), "2": (2,)}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The parameters of `notebooks/train_difflmm.ipynb`.

    Attributes:
        output_dir: folder of runs, figures and tables; made if it is not there.
        model: checkpoint of LLaVA or DiffLMM to start from, unless `parts` name a language model.
        parts: arguments of `core.training.assemble.write_start` (`language_model`, `clip`, `diffusion`, `encoder`), the
            `dtype` of what is put together, and `projector`: "new" (the default) or "kept", whether a model's projector
            (captioner, positions) begins anew.
        stages: "both", "1" or "2".
        stage_1, stage_2: changes to the paper's recipes, fields of `core.training.recipes.Recipe`; "recipe" names
            another one of `RECIPES` to change.
        options: fields of `core.training.run.RunOptions`.
        data: LLaVA-format JSON of `stage_1` and of `stage_2`, and the folder `images` of their pictures (by default
            `images` beside each); a stage without gets embedded training scenes, drawn here.
        n_images: embedded scenes to draw.
        question: what is asked in the end: `image` (by default an embedded validation scene), `prompt` and
            `max_new_tokens`.
        seed: of new weights, the order of samples and dropout.

    Raises:
        GroundingError: a value that cannot be used; the message says which values can.
    """

    output_dir: str
    model: str = "embedded"
    parts: dict[str, Any] = field(default_factory=dict)
    stages: str = "both"
    stage_1: dict[str, Any] = field(default_factory=dict)
    stage_2: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    n_images: int = 0
    question: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("parts", PARTS), ("data", DATA), ("question", QUESTION)):
            check_names(name, getattr(self, name), known)
        chosen = {"stages": self.stages, "projector": self.part("projector"), "dtype": self.part("dtype")}
        for name, known in (("stages", tuple(WHICH)), ("projector", PROJECTORS), ("dtype", DTYPES)):
            if chosen[name] not in known:
                raise GroundingError(f"{name} is {chosen[name]!r}; choose one of {', '.join(known)}")
        if not self.output_dir:
            raise GroundingError("output_dir is empty; give a folder for runs, tables and figures")
        if self.n_images < 1 and not all(map(self.given, self.chosen)):
            raise GroundingError(f"n_images is {self.n_images}; give a number of scenes, or data of every stage")
        for stage in (1, 2):  # refuse before anything is loaded
            self.recipe(stage)
        self.run_options()
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> Any:
        """A value of `parts`, or its default."""
        return (PARTS | self.parts)[name]

    def path(self, *parts: str) -> Path:
        """A path under the output directory."""
        return Path(self.output_dir, *parts)

    @property
    def chosen(self) -> tuple[int, ...]:
        """The stages to run."""
        return WHICH[self.stages]

    def recipe(self, stage: int) -> Recipe:
        """The recipe of a stage with this run's changes and seed."""
        given = self.stage_1 if stage == 1 else self.stage_2
        changes = {name: value for name, value in given.items() if name != "recipe"}
        changes = {"seed": self.seed, **_numbers(changes, f"stage_{stage}", Recipe)}
        return stage_recipe(stage, self.recipe_name(stage), **changes)

    def recipe_name(self, stage: int) -> str:
        """The name of the recipe that a stage's changes begin from."""
        return str((self.stage_1 if stage == 1 else self.stage_2).get("recipe", "paper"))

    def run_options(self) -> RunOptions:
        """Where and how the stages run."""
        check_names("options", self.options, [each.name for each in fields(RunOptions)])
        return RunOptions(**_numbers(self.options, "options", RunOptions))

    def run(self, stage: int) -> Path:
        """The directory of a stage's run."""
        return self.path("records", f"stage_{stage}")

    def start_parts(self) -> dict[str, Any]:
        """Keyword arguments of `core.training.assemble.write_start`; empty where a model is taken as it is."""
        new = self.part("projector") == "new" and 1 in self.chosen
        if not self.part("language_model") and not new:
            return {}
        return {
            "model": "" if self.part("language_model") else self.model,
            **{name: self.part(name) for name in ("language_model", "clip", "diffusion", "encoder")},
            "seed": self.seed,
            "dtype": getattr(torch, self.part("dtype")),
        }

    def prepare_start(self) -> str:
        """The checkpoint that the first stage starts from; put together once, in the output directory, if need be.

        Raises:
            GroundingError: a part cannot be loaded.
        """
        parts = self.start_parts()
        if not parts:
            return self.model
        from core.training.assemble import write_start

        folder = self.path("records", "start")
        if not (folder / "processor_config.json").is_file():  # written last
            write_start(folder, **parts)
        return str(folder)

    def given(self, stage: int) -> str:
        """The JSON file that was given for a stage, "" for embedded scenes."""
        return self.data.get(f"stage_{stage}", "")

    def file(self, stage: int) -> Path:
        """The JSON file of a stage; embedded scenes are drawn into the output directory."""
        if self.given(stage):
            return Path(self.given(stage))
        from embedded.scenes.dataset import write_dataset

        folder = self.path("data", f"train-seed{self.seed}")
        if not (folder / "instances.json").is_file():
            write_dataset(folder, split="train", n=self.n_images, seed=self.seed, progress=True)
        return folder / "conversations.json"

    def images(self) -> str | None:
        """The folder of the pictures, None for the one beside the JSON."""
        return self.data.get("images") or None

    def question_picture(self) -> Path:
        """The picture to ask about: the one given, or else the first embedded validation scene."""
        if self.asked["image"]:
            return Path(self.asked["image"])
        from embedded.scenes.dataset import write_dataset

        folder = self.path("data", "val")
        write_dataset(folder, split="val", n=1, seed=self.seed)
        return folder / "images" / "val_000000.png"

    @property
    def asked(self) -> dict[str, Any]:
        """The question in the end: `image`, `prompt`, `max_new_tokens`. The captions of "plain" follow no words."""
        plain = self.recipe(self.chosen[-1]).template == "plain"
        return QUESTION | self.question | ({"prompt": ""} if plain else {})

    def model_name(self) -> str:
        """The start in words, for tables."""
        parts = [part for part in map(self.part, ("language_model", "clip", "diffusion")) if part]
        return " + ".join(parts) if self.part("language_model") else self.model

    def provenance(self, samples: int) -> Provenance:
        """What made a table of the chosen stages: start, data, recipes."""
        files = dict.fromkeys(map(self.given, self.chosen))
        data = ", ".join(Path(file).stem or f"embedded scenes (train, seed {self.seed})" for file in files)
        recipes = {
            f"stage {stage}": ", ".join(
                f"{name}={value}" for name, value in asdict(self.recipe(stage)).items() if value is not None
            )
            for stage in self.chosen
        }
        return Provenance(self.model_name(), data, samples, recipes)

    def finish(self) -> Path:
        """Leave the marker that says that the notebook came to its end."""
        return mark_finished(self.output_dir)


def dry_run_table(planned: Mapping[str, DryRun]) -> pd.DataFrame:
    """One row per part of the model and stage (parameters in millions), then totals, tokens, memory and time.

    Args:
        planned: dry run of every stage, by its name.
    """
    rows: list[dict[str, Any]] = []
    for stage, plan in planned.items():
        parts = {**plan.parameters, "all": (plan.trainable, plan.frozen)}
        rows += [
            {"stage": stage, "what": f"parameters of {part}, millions", "learns": one / 1e6, "frozen": other / 1e6}
            for part, (one, other) in parts.items()
        ]
        numbers = {
            "samples": plan.samples,
            "tokens of an epoch, thousands": plan.tokens / 1e3,
            "answer tokens of an epoch, thousands": plan.answer_tokens / 1e3,
            "visual tokens of a picture": plan.visual_tokens,
            "optimiser steps": plan.steps,
            "operations, 10^12": plan.flops / 1e12,
            "memory of a device, GiB": sum(plan.memory.values()) / GIB,
            "hours": plan.seconds / 3600,
        }
        rows += [{"stage": stage, "what": name, "value": value} for name, value in numbers.items()]
    return pd.DataFrame(rows, columns=["stage", "what", "learns", "frozen", "value"])


def shell_commands(settings: TrainingSettings, *, launcher: str = "python") -> str:
    """The notebook's run as shell commands, one per step; only what differs from the named recipe is spelled out.

    Args:
        launcher: "python" for one device, or a file of `configs/` for several:
            "accelerate launch --config_file configs/fsdp.yaml".
    """
    start, lines = settings.model, []
    parts = settings.start_parts()
    if parts:
        start = str(settings.path("records", "start"))
        given = {name: value for name, value in parts.items() if name not in ("encoder", "dtype") and value != ""}
        given |= {"dtype": settings.part("dtype"), **parts["encoder"], "output": start}
        lines.append(_command("python -m core.training.assemble", given))
    for stage in settings.chosen:
        folder = settings.path("data", f"train-seed{settings.seed}")
        data = settings.given(stage) or str(folder / "conversations.json")
        name = settings.recipe_name(stage)
        given = {"stage": stage, "recipe": None if name == "paper" else name, "model": start, "data": data}
        given |= {"images": settings.images(), "output": str(settings.run(stage))}
        given |= _changes(settings.recipe(stage), RECIPES[name][stage]) | _changes(settings.run_options(), RunOptions())
        lines.append(_command(f"{launcher} -m core.training", given))
        if any(sharded in launcher for sharded in ("fsdp", "zero")):
            lines.append(_command("python -m core.training --merge", {"output": str(settings.run(stage))}))
        start = str(settings.run(stage) / "model")
    return "\n".join(lines)


def _command(program: str, options: Mapping[str, Any]) -> str:
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words.append(f"--{flag} {shlex.quote(str(value))}")
    return " ".join([program, *words])


def _changes(ours: Any, usual: Any) -> dict[str, Any]:
    """The fields in which two dataclasses differ, with the first one's values."""
    return {name: value for name, value in asdict(ours).items() if value != asdict(usual)[name]}


def _numbers(given: Mapping[str, Any], name: str, kind: type) -> dict[str, Any]:
    """The values with those as floats that are floats in the dataclass `kind`: YAML reads 1e-3 as a word.

    Raises:
        GroundingError: a word where a number belongs.
    """
    hints, found = get_type_hints(kind), dict(given)
    for key, value in given.items():
        if hints.get(key) in (float, float | None) and value is not None:
            try:
                found[key] = float(value)
            except (TypeError, ValueError) as error:
                raise GroundingError(f"{name}: {key} is {value!r}; it must be a number") from error
    return found
