"""The report's `index.html`: what was run, on what, what came out, and where each thing lies. Made from files alone."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jinja2 import Environment

from analysis.report.parameters import OUTPUT_DIR, declared_parameters
from analysis.report.runs import STATE, NotebookJob, NotebookState, read_state, shared_folder
from analysis.report.summary import existing, in_papers_order, summarise
from core.atomic import write_atomically

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_PACKAGES = ("torch", "torchvision", "transformers", "segment-anything", "spacy", "papermill", "numpy")
_INLINE_ROWS = 15  # longer tables are folded, and show so many rows
_PROVENANCE = ("source", "model", "data", "n_images", "settings")


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its title and links, relative to the page, by kind (`png`, `pdf`, `csv`)."""

    title: str
    links: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table: its HTML (the first 15 rows at most), the number of all rows, and links by kind; `title` is empty where
    the HTML brings its own."""

    title: str
    html: str
    rows: int
    links: dict[str, str]


@dataclass(frozen=True)
class NotebookSection:
    """Everything the page shows of one job; `title` and `question` are the heading and the first paragraph of its
    notebook, `model` the model or models that it looks at."""

    name: str
    title: str
    question: str
    model: str
    state: NotebookState | None
    parameters: list[dict[str, str]]
    provenance: dict[str, dict[str, str]]
    tables: list[Table]
    figures: list[Figure]
    links: dict[str, str] = field(default_factory=dict)


def write_page(output: Path, jobs: Sequence[NotebookJob], *, profile: str) -> Path:
    """Write `<output>/index.html` from what the jobs' directories hold now, and return its path."""
    sections = [notebook_section(job, output) for job in in_papers_order(jobs)]
    items = summarise(jobs)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        profile=profile,
        sections=sections,
        items=items,
        pictures=existing(items, output),
        shared=_shared_runs(output),
        unfinished=[each.title for each in sections if each.state is None or each.state.status != "finished"],
        seconds=sum((section.state.seconds for section in sections if section.state), 0.0),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        inline_rows=_INLINE_ROWS,
        duration=_duration,
    )
    page = output / "index.html"
    write_atomically(page, html.encode())
    return page


def notebook_section(job: NotebookJob, output: Path) -> NotebookSection:
    """Gather the section of one job; parts that do not exist yet are empty."""
    title, question = _opening(job)
    state = read_state(job.directory)
    declared = declared_parameters(job.notebook)
    values = {name: entry.default.strip("\"'") for name, entry in declared.items()}
    values |= {**job.parameters, **(state.parameters if state else {})}
    several = values.get("models")
    return NotebookSection(
        name=job.name,
        title=title or _title(job.name),
        question=question,
        model="; ".join(several) if isinstance(several, dict) and several else _plain(values.get("model", "")),
        state=state,
        parameters=[
            {
                "name": name,
                "value": _plain(values[name]),
                "help": entry.help,
            }
            for name, entry in declared.items()
            if name != OUTPUT_DIR
        ],
        provenance=_provenance(job.directory),
        tables=_tables(job.directory / "tables", output),
        figures=_figures(job.directory / "figures", output),
        links=_links(job, output),
    )


def _provenance(directory: Path) -> dict[str, dict[str, str]]:
    """What every run of records below a folder says made it, by its place there."""
    return {
        path.parent.relative_to(directory).as_posix(): flatten(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(directory.rglob("run.json"))
    }


def _shared_runs(output: Path) -> dict[str, dict[str, str]]:
    return _provenance(shared_folder(output))


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of `outer.inner` names with plain text; anything else stays one entry."""
    if not isinstance(value, dict):
        return {prefix or "value": _plain(value)}
    entries: dict[str, str] = {}
    for name, inner in value.items():
        entries |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return entries


def _tables(directory: Path, output: Path) -> list[Table]:
    tables = []
    for stem in sorted({path.stem for path in directory.glob("*") if path.suffix in (".csv", ".html")}):
        links = _siblings(directory, stem, ("csv", "html"), output)
        frame = _read_csv(directory / f"{stem}.csv")
        if frame is None and "html" not in links:
            continue
        if "html" in links and (frame is None or len(frame) <= _INLINE_ROWS):
            html = _body((directory / f"{stem}.html").read_text(encoding="utf-8"))
        else:
            html = _excerpt(frame)
        title = "" if "<caption" in html else _title(stem)
        tables.append(Table(title, html, 0 if frame is None else len(frame), links))
    return tables


def _excerpt(frame: pd.DataFrame) -> str:
    """The first rows of a long table; what made it is said once, not in every row."""
    same = [name for name in _PROVENANCE if name in frame and frame[name].nunique(dropna=False) == 1]
    shown = frame.drop(columns=same).head(_INLINE_ROWS)
    said = "; ".join(f"{name}: {frame[name].iloc[0]}" for name in same)
    table = shown.to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    return f'<p class="soft">{escape(said)}</p>{table}' if said else table


def _body(page: str) -> str:
    """What stands between a page's body tags; a fragment without them is returned as it is."""
    found = re.search(r"<body[^>]*>(.*?)(</body>|$)", page, flags=re.DOTALL | re.IGNORECASE)
    return found[1] if found else page


def _read_csv(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError):  # left half-written by a killed run
        return None


def _figures(directory: Path, output: Path) -> list[Figure]:
    return [
        Figure(_title(path.stem), _siblings(directory, path.stem, ("png", "pdf", "csv"), output))
        for path in sorted(directory.glob("*.png"))
    ]


def _siblings(directory: Path, stem: str, kinds: Sequence[str], output: Path) -> dict[str, str]:
    paths = {kind: directory / f"{stem}.{kind}" for kind in kinds}
    return {kind: _relative(path, output) for kind, path in paths.items() if path.is_file()}


def _links(job: NotebookJob, output: Path) -> dict[str, str]:
    """Label -> link: the executed notebook as a page and as a notebook, other pages it wrote, the run's state."""
    own = job.executed.with_suffix(".html")
    paths = {"read": own, "notebook": job.executed}
    paths |= {_title(path.stem): path for path in sorted(job.directory.glob("*.html")) if path != own}
    paths |= {"run state": job.directory / STATE}
    return {label: _relative(path, output) for label, path in paths.items() if path.is_file()}


def _opening(job: NotebookJob) -> tuple[str, str]:
    """The heading and the first paragraph of a job: of the first text cell of its notebook, or, where the notebook has
    another name because several jobs share it, of the first heading that this job's run displayed."""
    cells = nbformat.read(job.notebook, as_version=4).cells
    heading, question = _heading(next((cell.source for cell in cells if cell.cell_type == "markdown"), ""))
    if job.name == job.notebook.stem:
        return heading, question
    displayed = (_heading(text) for text in _displayed_texts(job.executed))
    own = f"{heading} ({_title(job.name)})" if heading else ""
    return next((found for found in displayed if found[0]), (own, question))


def _heading(text: str) -> tuple[str, str]:
    """The heading that a text begins with, empty if there is none, and the first paragraph."""
    heading, _, rest = text.replace("`", "").strip().partition("\n")
    if not heading.startswith("#"):
        return "", text.replace("`", "").strip().split("\n\n")[0]
    return heading.lstrip("# "), " ".join(rest.strip().split("\n\n")[0].split())


def _displayed_texts(executed: Path) -> list[str]:
    """The formatted texts among an executed notebook's outputs; none if it is missing or half-written."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):
        return []
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _title(stem: str) -> str:
    return stem.replace("_", " ")


def _relative(path: Path, output: Path) -> str:
    return path.relative_to(output).as_posix()
