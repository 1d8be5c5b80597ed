"""Profiles: which notebooks a report runs, and with which values.

A profile is a folder of parameter files, `notebooks/parameters/<profile>/<job>.yaml`, or one file. A parameter file
holds the values to run a notebook with: the notebook of the file's own name, or the one that its key `notebook` names,
so that several jobs may share a notebook. A profile of one file holds values that go to every notebook that declares
them, and under `jobs` what differs for one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from analysis.report.parameters import NOTEBOOK, OUTPUT_DIR, declared_parameters, unknown_name_message
from analysis.report.runs import NotebookJob
from core.errors import GroundingError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
JOBS = "jobs"
MODEL = "model"  # a notebook that declares it is run by every profile of one file
ENDINGS = (".yaml", ".yml")


def profile_name(profile: str) -> str:
    """The name of a profile: its folder's, or its file's without ending."""
    return Path(profile).stem if Path(profile).suffix in ENDINGS else profile


def profile_jobs(profile: str, output: Path, *, notebooks: Path = NOTEBOOKS) -> list[NotebookJob]:
    """The jobs of a profile, by name, with their values.

    Args:
        profile: name of a folder or a file of `notebooks/parameters`, or a YAML file of your own.
        output: the report's folder; each job has one of its own in it.
        notebooks: where the notebooks and their `parameters` lie.

    Raises:
        GroundingError: no such profile, a file without its notebook, or one that is no mapping, or names what no
            notebook declares.
    """
    shipped = notebooks / "parameters"
    own = Path(profile) if Path(profile).suffix in ENDINGS else shipped / f"{profile}.yaml"
    if own.is_file():
        return _jobs_of_one_file(own, output, notebooks)
    files = sorted((shipped / profile).glob("*.yaml")) if Path(profile).suffix not in ENDINGS else []
    if not files:
        others = sorted(path.stem for path in shipped.glob("*") if path.is_dir() or path.suffix in ENDINGS)
        raise GroundingError(
            f"no parameter files in {shipped / profile}, and no file {own}; profiles there: "
            f"{', '.join(others) or 'none'}; or give a YAML file of your own"
        )
    jobs = []
    for file in files:
        values = _read_mapping(file)
        notebook = _notebook(values.pop(NOTEBOOK, file.stem), notebooks, str(file))
        jobs.append(NotebookJob(notebook=notebook, parameters=values, directory=output / file.stem))
    return jobs


def _jobs_of_one_file(file: Path, output: Path, notebooks: Path) -> list[NotebookJob]:
    """Every notebook that declares `model`, and the jobs that the file names, but for those that it sets to false."""
    shared = _read_mapping(file)
    named = shared.pop(JOBS, {}) or {}
    if not isinstance(named, dict) or not all(isinstance(each, dict | bool | None) for each in named.values()):
        raise GroundingError(
            f"`{JOBS}` in {file} must hold `job: {{name: value}}` lines, or `job: false` to leave one out, "
            f"got {named!r}"
        )
    usual = [path.stem for path in sorted(notebooks.glob("*.ipynb")) if MODEL in declared_parameters(path)]
    taken = {each.get(NOTEBOOK, name) for name, each in named.items() if isinstance(each, dict)}
    names = [name for name in usual if name not in taken] + [name for name in named if named[name] is not False]
    jobs, declared = [], set()
    for name in sorted(set(names) - {name for name, each in named.items() if each is False}):
        own = dict(named[name]) if isinstance(named.get(name), dict) else {}
        notebook = _notebook(own.pop(NOTEBOOK, name), notebooks, str(file))
        takes = set(declared_parameters(notebook))
        declared |= takes
        values = {key: value for key, value in shared.items() if key in takes} | own
        jobs.append(NotebookJob(notebook=notebook, parameters=values, directory=output / name))
    unknown = [key for key in shared if key not in declared - {OUTPUT_DIR}]
    if unknown:
        known = sorted(declared - {OUTPUT_DIR})
        told = "\n".join(unknown_name_message(key, known, f"every notebook of {file}") for key in unknown)
        raise GroundingError(told)
    return jobs


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise GroundingError(f"{file} is no YAML: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise GroundingError(f"{file} must hold `name: value` lines, got {type(values).__name__}")
    return dict(values)


def _notebook(name: Any, notebooks: Path, said: str) -> Path:
    """The file of a notebook that a parameter file names."""
    if not isinstance(name, str):
        raise GroundingError(
            f"`{NOTEBOOK}` in {said} must be the name of a notebook, got {name!r} ({type(name).__name__})"
        )
    there = sorted(path.stem for path in notebooks.glob("*.ipynb"))
    if name not in there:
        raise GroundingError(
            f"{said} names the notebook {name!r}, and {notebooks / name}.ipynb does not exist; "
            f"notebooks there: {', '.join(there) or 'none'}"
        )
    return notebooks / f"{name}.ipynb"
