"""The record of the claims, read: every model's counts, scene by scene."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from analysis.claims.intervals import Counts
from analysis.encoders.rows import describe_variants
from analysis.tables import Provenance
from core.errors import GroundingError
from embedded.claims.record import RECORD
from embedded.scenes.scenes import make_scene

VERSIONS = ("torch", "transformers", "processor")  # that tables name
LABELS = {  # of what is no variant of Table 5
    "llava": "LLaVA in one stage (embedded)",
    "llava_two_stages": "LLaVA in two stages (embedded/llava_two_stages)",
    "difflmm": "DiffLMM (embedded/difflmm)",
    "long": "LLaVA, long answers",
    "long_picture_first": "LLaVA, long answers, picture first",
}


@dataclass(frozen=True)
class Claims:
    """The record.

    Attributes:
        settings: that all models were measured with.
        models: name to seed to what `embedded.claims.measure.measure_model` returned, with "versions" of libraries.
    """

    settings: Mapping[str, Any]
    models: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def of(self, names: Iterable[str]) -> Claims:
        """Those of some models; what is not recorded is left out."""
        return Claims(self.settings, {name: self.models[name] for name in names if name in self.models})

    def values(self, name: str, field: str) -> Shaped[np.ndarray, "seeds images"]:
        """One of `embedded.claims.measure.FIELDS` of a model, for each of its seeds and scenes."""
        return np.array([run["scenes"][field] for _, run in sorted(self.models[name].items())])

    def counts(self, name: str, part: str, whole: str) -> Counts:
        """Two fields of a model as numerators and denominators."""
        return Counts(self.values(name, part), self.values(name, whole), tuple(sorted(self.models[name])))

    def layers(self, name: str, key: str) -> list[float]:
        """One of what `embedded.claims.measure.look_inside` found, mean over the seeds."""
        return np.mean([run["layers"][key] for run in self.models[name].values()], axis=0).tolist()

    def provenance(self) -> Provenance:
        """What made the numbers, for tables; the prompt of each model whose own is not that of the first."""
        prompts = {name: next(iter(runs.values()))["prompt"] for name, runs in self.models.items()}
        usual = next(iter(prompts.values()), "")
        others = {f"prompt of {name}": prompt or "(none)" for name, prompt in prompts.items() if prompt != usual}
        settings = {"prompt": usual, **others, **{key: self.settings[key] for key in ("max_new_tokens", "geometry")}}
        runs = [run for seeds in self.models.values() for run in seeds.values()]
        versions = {key: ", ".join(sorted({run["versions"][key] for run in runs})) for key in VERSIONS if runs}
        data = f"embedded scenes ({self.settings['split']}, seed {self.settings['seed']})"
        return Provenance("embedded", data, int(self.settings["scenes"]), settings | versions)


def load_claims(source: str | Path = "") -> Claims:
    """The record in a file; "" for the one that is shipped.

    Raises:
        GroundingError: nothing there, or no record.
    """
    path = Path(source) if str(source) else RECORD
    name = repr(str(source)) if str(source) else "the shipped record of the claims"
    if not path.is_file():
        raise GroundingError(f"{name} does not exist; `python -m embedded.claims` measures models into one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise GroundingError(f"{name} is not JSON ({error}); measure the models anew") from error
    if not isinstance(content, dict) or not {"settings", "models"} <= content.keys():
        raise GroundingError(f"{name} is no record of the claims; `python -m embedded.claims` writes one")
    models: dict[str, dict[int, Any]] = {}
    for model in content["models"]:
        models.setdefault(model["name"], {})[model["seed"]] = model
    return Claims(content["settings"], models)


def label(name: str) -> str:
    """A model in words, with its name where that is all there is."""
    variants = describe_variants(5).set_index("variant")["label"]
    return LABELS.get(name, str(variants.get(name, name)))


def example_picture(claims: Claims, name: str, *, seed: int = 0) -> Any:
    """The picture of a model's recorded example, drawn again."""
    index = claims.models[name][seed]["example"]["index"]
    return make_scene(claims.settings["split"], index, seed=claims.settings["seed"]).image


def layer_norms(claims: Claims) -> dict[str, list[float]]:
    """`plot_norms`' values, of every recorded model."""
    return {label(name): claims.layers(name, "largest") for name in claims.models}
