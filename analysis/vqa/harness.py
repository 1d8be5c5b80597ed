"""lmms-eval in this process: our tasks beside their data, and one model on some tasks, with results as it writes them.

Importing lmms-eval takes some ten seconds; one process for all models pays it once.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.atomic import write_atomically
from core.errors import GroundingError
from embedded.scenes.visual_questions import DESCRIBED, POPE, QUESTIONS, write_visual_questions

SCENES = (QUESTIONS, POPE, DESCRIBED)
INSTALL = "lmms-eval is not installed; run `pip install -e '.[vqa]'` (some 800 MB)"


def installed() -> bool:
    """Whether lmms-eval is there; it is not imported."""
    return find_spec("lmms_eval") is not None


def write_tasks(directory: str | Path, *, split: str = "val", n: int = 100, seed: int = 0) -> Path:
    """The embedded sets with their task files beside them: a folder for lmms-eval's `--include_path`.

    Args:
        split, n, seed: of the scenes, as in `embedded.scenes.visual_questions.write_visual_questions`.
    """
    folder = write_visual_questions(directory, split=split, n=n, seed=seed)
    for task in SCENES:
        content = (files("analysis") / "vqa" / "tasks" / f"{task}.yaml").read_bytes()
        write_atomically(folder / f"{task}.yaml", content)
    return folder


def run_tasks(
    pretrained: str,
    tasks: Sequence[str],
    output: str | Path,
    *,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    maps: bool = False,
    limit: int | None = None,
    **loading: Any,
) -> Path:
    """What `python -m lmms_eval --model attend_and_segment --log_samples` does, in this process; returns `output`.

    A folder that holds the same run is left as it is.

    Args:
        pretrained: as `core.load_lmm` takes it.
        tasks: names, of lmms-eval's or of the files in `include_path`.
        output: folder of the results.
        include_path: folder of further tasks; with it, lmms-eval's own are not looked through.
        batch_size, maps, loading: of `core.harness.HarnessModel`.
        limit: ask the first so many questions of each task; for trials.

    Raises:
        GroundingError: lmms-eval is not installed, it knows no such task, or it left no results.
    """
    if not installed():
        raise GroundingError(INSTALL)
    output, loading = Path(output), {name: value for name, value in sorted(loading.items()) if value is not None}
    given = {"pretrained": pretrained, "batch_size": batch_size, "maps": maps} | loading
    wanted = {"model": given, "tasks": list(tasks), "limit": limit, "include_path": str(include_path or "")}
    marker = output / "request.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == json.loads(json.dumps(wanted)):
        return output
    marker.unlink(missing_ok=True)
    for old in output.rglob("*_samples_*.jsonl"):
        old.unlink()
    for old in output.rglob("*_results.json"):
        old.unlink()
    _evaluate(given, wanted["tasks"], output, include_path, limit)
    write_atomically(marker, json.dumps(wanted, indent=1).encode())
    return output


def _evaluate(given: dict[str, Any], tasks: list[str], output: Path, include_path: Any, limit: int | None) -> None:
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
        from lmms_eval.tasks import TaskManager
        from lmms_eval.utils import get_datetime_str

        from core.harness import NAME, AttendAndSegment

        include = None if include_path is None else [str(Path(include_path).resolve())]
        manager = TaskManager("ERROR", include_path=include, include_defaults=include is None, model_name=NAME)
        if missing := sorted(set(tasks) - set(manager.all_tasks)):
            raise GroundingError(f"lmms-eval knows no task {', '.join(missing)}; `python -m lmms_eval --tasks list`")
        tracker, date = EvaluationTracker(output_path=str(output)), get_datetime_str()
        command = Namespace(output_path=str(output), process_with_media=False)  # what tasks read of a command line
        results = simple_evaluate(
            model=AttendAndSegment(**given),
            model_args=",".join(f"{name}={value}" for name, value in given.items()),
            tasks=tasks,
            batch_size=given["batch_size"],
            limit=limit,
            task_manager=manager,
            evaluation_tracker=tracker,
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
            datetime_str=date,
            cli_args=command,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples, datetime_str=date)
        for task, logged in samples.items():
            tracker.save_results_samples(task_name=task, samples=logged)
    finally:
        logger.enable("lmms_eval")
    if not list(output.rglob("*_results.json")):
        raise GroundingError(f"lmms-eval left no results in {output}; is the folder writable?")
