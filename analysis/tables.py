"""Tables that say what made them: model, data and settings stand in the CSV's rows and in the HTML's caption."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

STYLE = """<style>
table.aas-table {border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 1.2em; font-size: .92em}
.aas-table caption {caption-side: top; text-align: left; padding: .3em 0; max-width: 70em; color: #333}
.aas-table th, .aas-table td {padding: .25em .6em; text-align: right !important; border: none}
.aas-table tr {background: none !important}
.aas-table thead th {border-bottom: 1.5px solid #444; vertical-align: bottom}
.aas-table td.text, .aas-table th.text {text-align: left !important}
.aas-table tr.group td {padding-top: .7em; font-weight: 600; border-bottom: 1px solid #bbb}
.aas-table tr.paper td {color: #666; font-style: italic}
</style>"""
INTERVAL = "95 % interval"
RANGE = "min to max"


@dataclass(frozen=True)
class Provenance:
    """What made a table: model, data, number of images and settings."""

    model: str
    data: str
    n_images: int
    settings: dict[str, Any] = field(default_factory=dict)

    def settings_text(self) -> str:
        """For example "prompt='Describe…'; mask_choice=last"; options that were left empty are left out."""
        return "; ".join(f"{name}={_quoted(value)}" for name, value in self.settings.items() if value not in ("", None))

    def headline(self) -> str:
        """Model, data and number of images; the title of figures."""
        return f"{self.model} on {self.data}, {self.n_images} images"

    def describe(self) -> str:
        """One line for captions."""
        return f"Model: {self.model}. Data: {self.data}, {self.n_images} images. Settings: {self.settings_text()}."


@dataclass(frozen=True, repr=False)
class Table:
    """A frame with its title and provenance; shows itself in a notebook and writes itself as CSV and HTML.

    Attributes:
        ours: what we measured.
        title: one line, saying the unit.
        provenance: what made `ours`.
        paper: the paper's rows for comparison, with `source` and `data` columns; kept apart from ours everywhere.
        decimals: of the numbers shown; the CSV keeps six digits.
    """

    ours: pd.DataFrame
    title: str
    provenance: Provenance
    paper: pd.DataFrame | None = None
    decimals: int = 1

    def frame(self) -> pd.DataFrame:
        """All rows, each with `source`, `model`, `data`, `n_images` and `settings` of its own."""
        ours = self.ours.drop(columns=[name for name in ("n_images",) if name in self.ours])
        labels = {
            "source": "measured here",
            "model": self.provenance.model,
            "data": self.provenance.data,
            "n_images": self.provenance.n_images,
            "settings": self.provenance.settings_text(),
        }
        own = {name: value for name, value in labels.items() if name not in ours}  # rows may name models of their own
        ours = ours.assign(**own)[[*labels, *(name for name in ours.columns if name not in labels)]]
        if self.paper is None:
            return ours
        paper = self.paper.assign(settings="as published")
        return pd.concat([ours, paper[[name for name in ours.columns if name in paper]]], ignore_index=True)

    def to_html(self) -> str:
        """An HTML table: ours first, then the paper's rows in grey under a heading of their own."""
        ours = _readable(self.ours.drop(columns=["n_images"], errors="ignore"), self.decimals)
        columns = list(ours.columns)
        rows = _group(f"measured here: {self.provenance.headline()}", "", ours, columns, self.decimals)
        note = ""
        if self.paper is not None:
            heading = f"{self.paper['source'].iloc[0]}: {self.paper['data'].iloc[0]}"
            rows += _group(heading, "paper", _readable(self.paper, self.decimals), columns, self.decimals)
            note = " Rows in grey are the paper's: other models, other data; shown for orientation, not for comparison."
        caption = f"<b>{html.escape(self.title)}</b><br>{html.escape(self.provenance.describe() + note)}"
        return _html(caption, columns, rows, ours)

    def __repr__(self) -> str:
        return f"{self.title}\n{self.provenance.describe()}\n{self._numbers()}"

    def _numbers(self) -> str:
        return self.ours.to_string(index=False, float_format=f"%.{self.decimals}f")

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, directory: str | Path, name: str) -> Table:
        """Write `name.csv` and `name.html` into a folder; returns the table, so that a notebook cell shows it."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame().to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        page += f'<body style="font-family: sans-serif">{self.to_html()}</body></html>'
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        return self


def paper_html(paper: pd.DataFrame) -> str:
    """A table of the paper's by itself, labelled as published."""
    shown = paper.drop(columns=["source", "data"])
    columns = list(shown.columns)
    caption = f"<b>{html.escape(paper['source'].iloc[0])}, as published</b><br>{html.escape(paper['data'].iloc[0])}"
    return _html(caption, columns, "".join(_row("paper", row, columns) for _, row in shown.iterrows()), shown)


def _readable(frame: pd.DataFrame, decimals: int) -> pd.DataFrame:
    """The frame with its `low` and `high` columns put together as one, beside the value they belong to; `min` and `max`
    likewise. Where there are several such pairs, each says whose it is."""
    for ends, title in ((("low", "high"), INTERVAL), (("min", "max"), RANGE)):
        firsts = [name for name in frame.columns if name == ends[0] or name.endswith(f"_{ends[0]}")]
        for low in firsts:
            owner = low.removesuffix(ends[0])
            high = owner + ends[1]
            bounds = [
                "–" if pd.isna(a) or pd.isna(b) else f"{a:.{decimals}f} to {b:.{decimals}f}"
                for a, b in zip(frame[low], frame[high], strict=True)
            ]
            name = title if len(firsts) == 1 else f"{owner.rstrip('_')}: {title}"
            frame = frame.assign(**{low: bounds}).drop(columns=high).rename(columns={low: name})
    return frame


def _html(caption: str, columns: list[str], rows: str, frame: pd.DataFrame) -> str:
    first = {name: frame[name].iloc[0] if len(frame) else None for name in columns}
    head = "".join(f'<th class="{_kind(first[name], name)}">{html.escape(name)}</th>' for name in columns)
    head = f"<thead><tr>{head}</tr></thead>"
    return f'{STYLE}<table class="aas-table"><caption>{caption}</caption>{head}<tbody>{rows}</tbody></table>'


def _group(heading: str, kind: str, frame: pd.DataFrame, columns: list[str], decimals: int) -> str:
    title = f'<tr class="group {kind}"><td class="text" colspan="{len(columns)}">{html.escape(heading)}</td></tr>'
    return title + "".join(_row(kind, row, columns, decimals) for _, row in frame.iterrows())


def _row(kind: str, row: pd.Series, columns: list[str], decimals: int = 1) -> str:
    cells = "".join(
        f'<td class="{_kind(row.get(name), name)}"{_whole(row.get(name))}>{_cell(row.get(name), decimals)}</td>'
        for name in columns
    )
    return f'<tr class="{kind}">{cells}</tr>'


def _cell(value: Any, decimals: int) -> str:
    if isinstance(value, str):
        return html.escape(value)
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def _kind(value: Any, column: str) -> str:
    return "text" if isinstance(value, str) and not column.endswith((INTERVAL, RANGE)) else ""


def _whole(value: Any) -> str:
    """Short words stay on one line."""
    return ' style="white-space: nowrap"' if isinstance(value, str) and len(value) <= 32 else ""


def _quoted(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) and " " in value else str(value)
