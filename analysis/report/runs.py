"""Run one notebook through papermill: skipped when nothing changed, its failure kept rather than thrown."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color

from analysis.report.notebook_html import export_html
from analysis.report.parameters import OUTPUT_DIR, RUNS_DIR, declared_parameters
from analysis.report.progress import NotebookProgress
from core.atomic import write_atomically
from core.errors import GroundingError

DONE = "DONE"  # the marker that a notebook writes as its last effect
STATE = "report.json"
_PACKAGES = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class NotebookJob:
    """A notebook, the values of its parameters (without `output_dir`) and the directory its results go to.

    The directory also names the job: several jobs may share a notebook, none a directory.
    """

    notebook: Path
    parameters: dict[str, Any]
    directory: Path

    @property
    def name(self) -> str:
        """The last part of the directory."""
        return self.directory.name

    @property
    def executed(self) -> Path:
        """Where the executed notebook goes; its page lies beside it."""
        return self.directory / f"{self.name}.ipynb"


@dataclass(frozen=True)
class NotebookState:
    """What `report.json` in a notebook's directory says of its last run.

    `status` is "running", "finished" or "failed"; `identity` holds one digest per thing that the results depend on;
    `error` is empty, or holds `type`, `message`, `cell` (the execution count, or None) and `traceback`.
    """

    status: str
    identity: dict[str, str]
    parameters: dict[str, Any]
    started: str
    seconds: float = 0.0
    error: dict[str, Any] = field(default_factory=dict)


def read_state(directory: Path) -> NotebookState | None:
    """The state of the last run in `directory`, None where there is none or it cannot be read."""
    try:
        return NotebookState(**json.loads((directory / STATE).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def count_cells(job: NotebookJob) -> int:
    """Cells that a run of the job goes through: the notebook's own and the injected parameters."""
    return len(nbformat.read(job.notebook, as_version=4).cells) + 1


def job_identity(job: NotebookJob) -> dict[str, str]:
    """Digests of the notebook, its parameters, and the files of `core` (the shipped weights included), `embedded` and
    `analysis`.
    """
    return {
        "notebook": _digest(job.notebook.read_bytes()),
        "parameters": _digest(json.dumps(job.parameters, sort_keys=True, default=str).encode()),
        **{package: _digest_tree(_PACKAGES / package) for package in ("core", "embedded", "analysis")},
    }


def is_finished(job: NotebookJob, identity: Mapping[str, str]) -> bool:
    """Whether the job's directory holds the complete results of exactly this job."""
    state = read_state(job.directory)
    return (
        state is not None
        and state.status == "finished"
        and state.identity == dict(identity)
        and (job.directory / DONE).exists()
    )


def run_notebook(
    job: NotebookJob,
    *,
    progress: NotebookProgress,
    force: bool = False,
    fresh: bool = False,
    timeout: int | None = None,
) -> NotebookState:
    """Run the job unless its results are complete; write the executed notebook, its HTML and `report.json`.

    Records of an earlier, interrupted run are continued. On an embedded model they are dropped first when the
    parameters or anything in `core` or `embedded` changed: they may come from weights that no longer exist. Otherwise
    it is for the notebook's own record store to refuse a changed configuration.

    Args:
        progress: told about every cell.
        force: run even if finished; records are kept.
        fresh: run even if finished, after deleting everything of an earlier run, records included.
        timeout: seconds that one cell may take; None for no limit.

    Raises:
        GroundingError: `fresh`, and the directory holds something, but no state of an earlier run.
    """
    progress.start(job.name)
    identity = job_identity(job)
    if is_finished(job, identity) and not (force or fresh):
        progress.end("finished earlier, nothing changed")
        return read_state(job.directory)
    _prepare(job, identity, fresh)
    begun = time.monotonic()
    running = NotebookState("running", identity, job.parameters, datetime.now(UTC).isoformat(timespec="seconds"))
    _write_state(job.directory, running)
    error = _execute(job, progress, timeout)
    if job.executed.exists():
        export_html(job.executed)
    state = NotebookState(
        status="failed" if error else "finished",
        identity=identity,
        parameters=job.parameters,
        started=running.started,
        seconds=round(time.monotonic() - begun, 1),
        error=error,
    )
    _write_state(job.directory, state)
    progress.end(f"failed: {error['type']}: {error['message']}" if error else "finished")
    return state


def shared_folder(output: Path) -> Path:
    """Where the notebooks of a report keep the answers and the drawn scenes that they share."""
    return output / "runs"


def prepare_shared(jobs: Sequence[NotebookJob], output: Path, *, fresh: bool = False) -> None:
    """Drop what the jobs' notebooks share where it can be out of date: everything with `fresh`; else, when `core` or
    `embedded` changed, the embedded scenes and what came of them or of an embedded model. Records of other models stay.
    """
    if not any(_shared(job) for job in jobs):
        return
    folder, marker = shared_folder(output), shared_folder(output) / "code.json"
    code = {package: _digest_tree(_PACKAGES / package) for package in ("core", "embedded")}
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    if folder.is_dir() and (not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != code):
        shutil.rmtree(folder / "data", ignore_errors=True)
        for about in folder.glob("*/*/run.json"):
            if _is_embedded(json.loads(about.read_text(encoding="utf-8")).get("config", {})):
                shutil.rmtree(about.parent)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, json.dumps(code).encode())


def _is_embedded(config: Mapping[str, Any]) -> bool:
    """Whether a run is of embedded scenes or has an embedded model in it."""
    model, segmenter = config.get("model") or {}, config.get("segmenter") or {}
    names = (model.get("name_or_path"), segmenter.get("name"), config.get("data"), config.get("nlp"))
    return any(str(name).startswith("embedded") for name in names)


def _prepare(job: NotebookJob, identity: Mapping[str, str], fresh: bool) -> None:
    before = read_state(job.directory)
    if before is not None and (fresh or (_uses_embedded_model(job) and _results_are_stale(before, identity))):
        shutil.rmtree(job.directory)
    elif fresh and job.directory.is_dir() and any(job.directory.iterdir()):
        raise GroundingError(
            f"{job.directory} holds no {STATE} of an earlier run, so it is not deleted; "
            "delete it yourself or choose another --output"
        )
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / DONE).unlink(missing_ok=True)


def _uses_embedded_model(job: NotebookJob) -> bool:
    """Whether the job's `model`, set or by default, is one that this package ships."""
    default = {name: entry.default.strip("\"'") for name, entry in declared_parameters(job.notebook).items()}
    return str({**default, **job.parameters}.get("model")).split("/")[0] == "embedded"


def _results_are_stale(before: NotebookState, identity: Mapping[str, str]) -> bool:
    return any(before.identity.get(part) != identity[part] for part in ("parameters", "core", "embedded"))


def _execute(job: NotebookJob, progress: NotebookProgress, timeout: int | None) -> dict[str, Any]:
    """Empty when the notebook ran to its end and left its marker, otherwise what went wrong."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, whatever the user's own kernels are
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # widgets that stay empty in an exported page
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(
            job.notebook,
            job.executed,
            parameters={**_shared(job), **job.parameters, OUTPUT_DIR: str(job.directory)},
            kernel_name="python3",
            progress_bar=False,
            stdout_file=progress,
            stderr_file=progress,
            execution_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=50"],  # its transport warning and our own interrupt are noise
            on_cell_executed=_tell(progress),
        )
    except PapermillExecutionError as error:
        return _error(error.ename, error.evalue, cell=error.exec_count, traceback="\n".join(error.traceback))
    except DeadKernelError as error:
        return _error("DeadKernelError", f"{error}; a kernel that ends without a word was most likely out of memory")
    except (CellTimeoutError, RuntimeError) as error:  # RuntimeError: the kernel did not come up
        return _error(type(error).__name__, str(error))
    if not (job.directory / DONE).exists():
        return _error("GroundingError", f"the notebook ended without writing {job.directory / DONE}")
    return {}


def _shared(job: NotebookJob) -> dict[str, str]:
    """The folder that the notebooks of a report share, for one that declares it."""
    return {RUNS_DIR: str(shared_folder(job.directory.parent))} if RUNS_DIR in declared_parameters(job.notebook) else {}


def _tell(progress: NotebookProgress) -> Callable[..., None]:
    def on_cell_executed(**_: Any) -> None:
        progress.advance()

    return on_cell_executed


def _error(kind: str, message: str, *, cell: int | None = None, traceback: str = "") -> dict[str, Any]:
    return {"type": kind, "message": message, "cell": cell, "traceback": strip_color(traceback)}


def _write_state(directory: Path, state: NotebookState) -> None:
    write_atomically(directory / STATE, json.dumps(asdict(state), indent=2, default=str).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_tree(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        total.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]
