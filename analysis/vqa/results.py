"""Folders of results as lmms-eval writes them: metrics, and the logs of single questions where they were kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import GroundingError


@dataclass(frozen=True)
class TaskResult:
    """What one model got on one task.

    Attributes:
        task: its name.
        metrics: by name; of several filters the unfiltered one ("none") where there is one.
        n: questions asked; None where the file does not say.
        samples: what lmms-eval logged of each question; None without `--log_samples`.
        model: the run's model and its arguments.
        path: the results file.
    """

    task: str
    metrics: dict[str, float]
    n: int | None
    samples: list[dict[str, Any]] | None
    model: str
    path: Path


def read_results(folder: str | Path) -> dict[str, TaskResult]:
    """Every task of a results folder (and the folders in it), each from the newest file that has it.

    Raises:
        GroundingError: no results there, or a file that lmms-eval did not write; the message names it.
    """
    files = sorted(Path(folder).rglob("*_results.json"), key=lambda path: path.name)
    if not files:
        raise GroundingError(
            f"no *_results.json in {str(folder)!r}; give the folder that `python -m lmms_eval --output_path` wrote"
        )
    found: dict[str, TaskResult] = {}
    for path in files:
        found |= _read_file(path)
    return found


def answers(results: Mapping[str, TaskResult]) -> pd.DataFrame:
    """Columns `task`, `question` (its number), `target` and `answer` (as scored) of every logged question.

    Raises:
        GroundingError: a task was not logged.
    """
    rows = []
    for task, result in results.items():
        if result.samples is None:
            raise GroundingError(f"{result.path} has no logged answers of {task}; run lmms-eval with --log_samples")
        rows += [(task, each["doc_id"], each.get("target"), each["filtered_resps"]) for each in result.samples]
    return pd.DataFrame(rows, columns=["task", "question", "target", "answer"])


def differing_answers(first: Mapping[str, TaskResult], second: Mapping[str, TaskResult]) -> pd.DataFrame:
    """The questions that two runs answered in other words: `task`, `question`, `target`, `first`, `second`.

    Raises:
        GroundingError: the runs were not asked the same questions, or not logged.
    """
    one, other = (answers(results).set_index(["task", "question"]) for results in (first, second))
    if not one.index.is_unique or not one.index.sort_values().equals(other.index.sort_values()):
        raise GroundingError(
            f"the runs answered different questions ({len(one)} and {len(other)} of them); compare runs of one data set"
        )
    both = one.rename(columns={"answer": "first"}).assign(second=other["answer"].reindex(one.index))
    return both[both["first"] != both["second"]].reset_index()


def _read_file(path: Path) -> dict[str, TaskResult]:
    content = _json(path.read_text(encoding="utf-8"), str(path))
    tasks = content.get("results") if isinstance(content, dict) else None
    if not isinstance(tasks, dict):
        raise GroundingError(f"{path} has no 'results'; is it a results file of lmms-eval?")
    config, date = content.get("config") or {}, path.name.removesuffix("_results.json")
    model = " ".join(str(config[name]) for name in ("model", "model_args") if config.get(name))
    found = {}
    for task, values in tasks.items():
        if not isinstance(values, dict):
            raise GroundingError(f"{path}: the results of {task!r} are no mapping of metrics")
        metrics = _metrics(values)
        samples = _samples(path.with_name(f"{date}_samples_{task}.jsonl"))
        if metrics or samples:  # a group of tasks has neither
            n = (content.get("n-samples") or {}).get(task, {}).get("effective")
            n = len(samples) if n is None and samples is not None else n
            found[task] = TaskResult(task, metrics, n, samples, model, path)
    return found


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """`{"name,filter": number}` without standard errors."""
    metrics: dict[str, float] = {}
    for key, value in values.items():
        name, _, used = key.partition(",")
        if not used or "_stderr" in name or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if used == "none" or name not in metrics:
            metrics[name] = float(value)
    return metrics


def _samples(path: Path) -> list[dict[str, Any]] | None:
    """The logged questions, by their number; what several processes logged twice counts once."""
    if not path.is_file():
        return None
    samples: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        sample = _json(line, f"{path}, line {number}")
        if not isinstance(sample, dict) or not {"doc_id", "filtered_resps"} <= set(sample):
            raise GroundingError(f"{path}, line {number}: no doc_id and filtered_resps; is it a log of lmms-eval?")
        samples[sample["doc_id"]] = sample
    return [samples[key] for key in sorted(samples)]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(re.sub(r"^\ufeff", "", text))
    except json.JSONDecodeError as error:
        raise GroundingError(f"{where} is not JSON ({error}); was it cut off?") from error
