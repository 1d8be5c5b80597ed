"""The record of the claims: one file with every model's counts, to which one model is added at a time.

Models of one record share the settings; each says the versions of the libraries that it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.atomic import write_atomically
from core.claim import read_object, refuse_other
from core.errors import GroundingError
from embedded.claims.measure import FIELDS
from embedded.encoder_study.experiments import environment, refuse_mixed_parts

RECORD = Path(__file__).parents[1] / "recorded" / "claims.json"


def add_model(
    name: str,
    seed: int,
    measured: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    parts: Mapping[str, str] | None = None,
    file: Path = RECORD,
) -> Path:
    """Puts one measured model into the record, in the place of what that name and seed had there.

    Args:
        name: of the variant, such as "sd_clip" or "long".
        seed: of its training.
        measured: what `embedded.claims.measure.measure_model` returned.
        settings: it was measured with.
        parts: the fingerprints of what it was trained from, `trained_parts`.
        file: the record; made if absent.

    Raises:
        GroundingError: the record holds models of other settings or other parts, or is damaged; or the number of scenes
            is not that of the settings.
    """
    lengths = {len(measured["scenes"][field]) for field in FIELDS}
    if lengths != {settings["scenes"]}:
        raise GroundingError(f"{name} was measured on {sorted(lengths)} scenes, the settings say {settings['scenes']}")
    models = []
    if file.is_file():
        found = read_object(file)
        refuse_other(file, found.get("settings", {}), settings, advice="measure all models of the record anew")
        models = [each for each in found["models"] if (each["name"], each["seed"]) != (name, seed)]
    told = {"parts": dict(parts)} if parts else {}
    added = {"name": name, "seed": seed, "versions": environment(), **told, **measured}
    models = sorted([*models, added], key=lambda each: (each["name"], each["seed"]))
    refuse_mixed_parts((f"{each['name']}, seed {each['seed']}", each) for each in models)
    return _write(settings, models, file)


def keep_parts(parts: Mapping[str, str], file: Path = RECORD) -> None:
    """Drops the models that were trained from other parts, for a family that is trained anew.

    Args:
        parts: fingerprints of the new ones; models that say nothing of theirs stay.
        file: the record; nothing is done where there is none.
    """
    if file.is_file():
        found = read_object(file)
        kept = [
            each
            for each in found["models"]
            if all(parts.get(part, mark) == mark for part, mark in each.get("parts", {}).items())
        ]
        _write(found["settings"], kept, file)


def _write(settings: Mapping[str, Any], models: list[dict[str, Any]], file: Path) -> Path:
    head = json.dumps({"settings": dict(settings)}, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(model, separators=(',', ':'))}" for model in models)  # a line each
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, f'{head},\n "models": [\n{lines}\n ]\n}}\n'.encode())
    return file


def trained_parts(model: Path) -> dict[str, str]:
    """The fingerprints of what a run of the two stages was trained from, by the result beside its model's folder."""
    result = model.parent / "result.json"
    return read_object(result).get("parts", {}) if result.is_file() else {}
