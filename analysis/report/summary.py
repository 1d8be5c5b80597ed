"""The report's first block: what of the paper was measured, ours beside the paper's, each naming model and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.paper import TABLES
from analysis.report.runs import NotebookJob
from analysis.results import BEYOND, ITEMS, read_results

TITLES = {
    "Table 1": "pilot study: do the words point at the right pixels?",
    "Table 2": "grounded conversation generation",
    "Table 3": "visual question answering",
    "Table 4": "normalisation and prompt of the segmenter",
    "Table 5": "visual encoders",
    "Table 6": "noise step and block of the U-Net",
    "Table 7": "single heads",
    "Figure 1": "grounded answers",
    "Figure 4": "four challenges",
    "Figure 5": "every layer and head",
    "Figure 6": "every token before and after equation 3",
    "Figure 7": "the best masks that do not overlap",
}


@dataclass(frozen=True)
class Line:
    """One row of an item: its name, its model, for each quantity our number and the paper's as text, and the name of
    the paper's row.
    """

    name: str
    model: str
    cells: tuple[tuple[str, str], ...]
    beside: str = ""


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper as far as it was measured or drawn here.

    Attributes:
        name, title: such as "Table 1", and what it is about.
        job: the section that shows it; "" where no job of this run has it.
        quantities: names of the columns.
        lines: the rows.
        made: what ours were measured on.
        published: what the paper's were; "" where none stand beside.
        notes: how the two differ beyond that.
        pictures: stems of the figures that show it.
    """

    name: str
    title: str
    job: str = ""
    quantities: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    made: str = ""
    published: str = ""
    notes: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    @property
    def beside(self) -> bool:
        """Whether any of the paper's numbers stands beside ours."""
        return any(theirs for line in self.lines for _, theirs in line.cells)

    @property
    def named(self) -> bool:
        """Whether any of the paper's rows has a name."""
        return any(line.beside for line in self.lines)


def summarise(jobs: Sequence[NotebookJob]) -> list[Item]:
    """Every table and figure of the paper in its order, then what goes beyond it, job by job, from their results."""
    found: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for job in jobs:
        for name, rows in read_results(job.directory).groupby("item", sort=False):
            found.setdefault(name, []).append((job.name, rows))
    items = [_item(name, parts) for name in ITEMS for parts in (found.get(name) or [("", None)],)]
    return items + [_item(BEYOND, [part]) for part in found.get(BEYOND, ())]


def in_papers_order(jobs: Sequence[NotebookJob]) -> list[NotebookJob]:
    """The jobs in the order of the paper's items that they hold; those without results last, as they came."""
    places = {}
    for job in jobs:
        ranks = [ITEMS.index(name) for name in read_results(job.directory)["item"] if name in ITEMS]
        places[job.name] = min(ranks, default=len(ITEMS))
    return sorted(jobs, key=lambda job: places[job.name])


def _item(name: str, parts: Sequence[tuple[str, pd.DataFrame | None]]) -> Item:
    frames = [frame.assign(job=job) for job, frame in parts if frame is not None]
    if not frames:
        return Item(name, TITLES[name])
    rows = pd.concat(frames).fillna({"method": "", "model": "", "note": "", "figure": "", "paper_method": ""})
    numbers = rows[rows["value"].notna()]
    quantities = tuple(numbers["quantity"].unique())
    lines = [
        Line(
            _named(method, job, numbers),
            model,
            tuple(_cell(group, quantity) for quantity in quantities),
            "; ".join(name for name in group["paper_method"].unique() if name),
        )
        for (job, method, model), group in numbers.groupby(["job", "method", "model"], sort=False)
    ]
    number = int(name.split()[1]) if name.startswith("Table") else 0
    return Item(
        name,
        parts[0][0].replace("_", " ") if name == BEYOND else TITLES[name],
        job=parts[0][0],
        quantities=quantities,
        lines=tuple(lines),
        made="; ".join(
            str(data) if pd.isna(n) else f"{data}, n = {n:g}"
            for data, n in dict.fromkeys(rows[["data", "n"]].itertuples(index=False, name=None))
        ),
        published=TABLES[number][1] if number and numbers["paper"].notna().any() else "",
        notes=tuple(note for note in rows["note"].unique() if note),
        pictures=tuple(f"{job}/figures/{stem}.png" for job, stem in _pictures(parts)),
    )


def _named(method: str, job: str, numbers: pd.DataFrame) -> str:
    """A row's name, with its job where several jobs measured the item."""
    return method if numbers["job"].nunique() == 1 else f"{method} ({job.replace('_', ' ')})".strip()


def _pictures(parts: Sequence[tuple[str, pd.DataFrame | None]]) -> list[tuple[str, str]]:
    return [(job, str(stem)) for job, frame in parts if frame is not None for stem in frame["figure"].dropna()]


def _cell(group: pd.DataFrame, quantity: str) -> tuple[str, str]:
    """(ours with its interval, the paper's) of one quantity."""
    rows = group[group["quantity"] == quantity]
    if rows.empty:
        return "", ""
    row: Mapping[str, object] = rows.iloc[0]
    digits = 3 if abs(row["value"]) < 10 and "nats" in quantity else 1
    ours = f"{row['value']:.{digits}f}"
    if pd.notna(row["low"]) and pd.notna(row["high"]):
        ours += f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
    return ours, f"{row['paper']:g}" if pd.notna(row["paper"]) else ""


def existing(items: Sequence[Item], output: Path) -> dict[str, list[str]]:
    """Of each item the pictures that are there."""
    return {item.name: [path for path in item.pictures if (output / path).is_file()] for item in items}
