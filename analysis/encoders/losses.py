"""Stage-1 losses of the visual encoders at embedded scale: read from the shipped record or from a work folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import Provenance
from analysis.training.losses import converged_loss
from core.errors import GroundingError
from embedded.encoder_study.variants import Variant

LAST = 0.1  # share of the steps whose mean is the converged loss
KINDS = {
    "training_loss": f"training loss, last {100 * LAST:.0f} % of the steps",
    "held_out_loss": "loss on held-out scenes",
}


@dataclass(frozen=True)
class StageLosses:
    """One stage's runs of several variants, all of one recipe.

    Attributes:
        runs: one row per run: `variant`, `seed`, `training_loss` (converged), `held_out_loss`; nats per answer token.
        curves: `variant`, `seed`, `step` (the middle of a bin), `loss` (mean of the bin).
        recipe: of the stage, with the number of `steps`.
        versions: the encoders' edition, libraries and processor that the losses were computed with.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    recipe: dict[str, Any]
    versions: dict[str, str]

    def of(self, variants: Sequence[Variant]) -> StageLosses:
        """The runs of some variants, in their order, then by seed."""
        names = [variant.name for variant in variants]
        parts = []
        for frame in (self.runs, self.curves):
            frame = frame[frame["variant"].isin(names)]
            places = frame["variant"].map(names.index)
            parts.append(frame.assign(place=places).sort_values(["place", "seed"], kind="stable").drop(columns="place"))
        return StageLosses(*(part.reset_index(drop=True) for part in parts), self.recipe, self.versions)

    def provenance(self) -> Provenance:
        """What made the losses, for tables."""
        settings = {name: value for name, value in self.recipe.items() if name != "scenes"}
        seeds = sorted(self.runs["seed"].unique().tolist())
        settings |= {"seeds": ", ".join(map(str, seeds)) or "none", **self.versions}
        model = f"embedded LLaVA and DiffLMM, stage {self.recipe['stage']}"
        return Provenance(model, "embedded scenes (train)", int(self.recipe["scenes"]), settings)


def load_stage_losses(source: str | Path = "", *, stage: int = 1) -> StageLosses:
    """The losses of one stage's finished runs.

    Args:
        source: "" for the record that is shipped; "unaligned" for that of the U-Net before, of which no block was
            aligned (Table 6's); a record's JSON file; or a work folder of `make embedded`, whose
            finished runs are read as they are now.
        stage: 1 or 2.

    Raises:
        GroundingError: nothing there, no finished run of the stage, runs of several recipes, or a broken record.
    """
    record, name = read_record(source)
    runs = [run for run in record["runs"] if run["recipe"]["stage"] == stage]
    if not runs:
        raise GroundingError(f"{name} holds no finished run of stage {stage}; `make embedded` trains the variants")
    recipe = _one_recipe(runs, name)
    rows, curves = [], []
    for run in runs:
        key = {"variant": run["variant"], "seed": run["seed"]}
        lengths = _lengths(run, record["loss_bin"], name)
        losses = np.asarray(run["losses"], dtype=float)
        ends = np.cumsum(lengths)
        every = pd.DataFrame({"run": "run", "step": np.arange(run["steps"]) + 1, "loss": np.repeat(losses, lengths)})
        converged = float(converged_loss(every, share=LAST)["loss"].iloc[0])
        rows.append({**key, "training_loss": converged, "held_out_loss": float(run["held_out_loss"])})
        curves.append(pd.DataFrame({**key, "step": ends - (lengths - 1) / 2, "loss": losses}))
    told = ("encoders", "torch", "transformers", "diffusers", "processor")
    versions = {key: str(record[key]) for key in told if key in record}
    return StageLosses(pd.DataFrame(rows), pd.concat(curves, ignore_index=True), recipe, versions)


def read_record(source: str | Path) -> tuple[dict[str, Any], str]:
    """The record of a source (see `load_stage_losses`) and what to call it in messages.

    Raises:
        GroundingError: nothing there, or a broken record.
    """
    from embedded.encoder_study.experiments import RECORD, gather

    shipped = {"": RECORD, "unaligned": RECORD.with_name("losses_unaligned.json")}.get(str(source))
    path = shipped or Path(source)
    name = f"the shipped record {path.name}" if shipped else repr(str(source))
    if path.is_dir():
        return gather(path), name
    if not path.is_file():
        raise GroundingError(
            f"{name} does not exist; `make embedded` trains the variants, and its work folder can be given as runs"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise GroundingError(f"{name} is not JSON ({error}); give a work folder of `make embedded`") from error
    if not isinstance(record, dict) or not {"runs", "loss_bin"} <= record.keys():
        raise GroundingError(
            f"{name} is no record of losses: it lacks `runs` and `loss_bin`; `make embedded` writes one"
        )
    return record, name


def _one_recipe(runs: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The recipe of all runs: losses after other steps or on other scenes do not compare."""
    recipes = {json.dumps({**run["recipe"], "steps": run["steps"]}, sort_keys=True): run for run in runs}
    if len(recipes) > 1:
        told = "; ".join(f"{run['variant']}, seed {run['seed']}: {recipe}" for recipe, run in recipes.items())
        raise GroundingError(f"{name} holds runs of {len(recipes)} recipes, which do not compare ({told})")
    run = runs[0]
    return {**run["recipe"], "steps": run["steps"]}


def _lengths(run: Mapping[str, Any], size: int, name: str) -> np.ndarray:
    """How many steps each of a run's mean losses stands for: `size`, the last one what is left."""
    steps, bins = run["steps"], len(run["losses"])
    if bins != -(-steps // size):
        raise GroundingError(
            f"{name}: {run['variant']}, seed {run['seed']}, has {bins} mean losses of {size} steps for {steps} steps; "
            "gather the record again"
        )
    return np.diff([*range(0, steps, size), steps])
