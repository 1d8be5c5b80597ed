"""What a notebook measured of the paper: one row a number, beside the paper's, for the report's summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.paper import paper_row
from analysis.scoring.metrics import NOTHING, Interval
from analysis.tables import Provenance
from core.atomic import write_atomically
from core.errors import GroundingError

FILE = "results.csv"
ITEMS = (*(f"Table {number}" for number in range(1, 8)), *(f"Figure {number}" for number in (1, 4, 5, 6, 7)))
"""What of the paper can be measured or drawn, in its order; "beyond" is what goes beyond it."""
BEYOND = "beyond"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number, or one picture.

    Attributes:
        item: of the paper, one of `ITEMS`, or "beyond".
        quantity: what was measured, with its unit, such as "PAcc (%)"; of a picture, what it shows.
        method: row of the table.
        interval: value and interval in the quantity's unit; nan for a picture.
        model, data, n: what made it, where it is not the notebook's own.
        paper: the paper's number, None where it has none.
        paper_method: whose number that is.
        note: how the two differ, beyond model and data.
        figure: stem of the picture in the notebook's folder `figures`.
    """

    item: str
    quantity: str
    method: str = ""
    interval: Interval = NOTHING
    model: str = ""
    data: str = ""
    n: int | None = None
    paper: float | None = None
    paper_method: str = ""
    note: str = ""
    figure: str = ""

    def __post_init__(self) -> None:
        if self.item not in (*ITEMS, BEYOND):
            raise GroundingError(f"the paper has no {self.item!r}; choose one of {', '.join(ITEMS)}, or {BEYOND!r}")


COLUMNS = [
    name for each in fields(Result) for name in (("value", "low", "high") if each.name == "interval" else [each.name])
]


def save_results(output_dir: str | Path, results: Sequence[Result], provenance: Provenance) -> Path:
    """Write `results.csv` into a notebook's folder; returns its path.

    Args:
        output_dir: the notebook's folder.
        results: the rows, in the order in which they are shown.
        provenance: model, data and number of images of rows that name none of their own.
    """
    made = {"model": provenance.model, "data": provenance.data, "n": provenance.n_images}
    rows = []
    for result in results:
        row = {name: value for name, value in asdict(result).items() if name != "interval"}
        row |= {name: value for name, value in made.items() if row[name] in ("", None)}
        rows.append(row | {name: getattr(result.interval, name) for name in ("value", "low", "high")})
    path = Path(output_dir, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.6g").encode())
    return path


def read_results(output_dir: str | Path) -> pd.DataFrame:
    """The rows that a notebook wrote; empty where it wrote none, or a file that is not of this version."""
    path = Path(output_dir, FILE)
    try:
        frame = pd.read_csv(path)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError):
        return pd.DataFrame(columns=COLUMNS)
    return frame if list(frame.columns) == COLUMNS else pd.DataFrame(columns=COLUMNS)


def rows_of(
    frame: pd.DataFrame,
    *,
    item: str,
    quantities: Mapping[str, str],
    published: Mapping[str, str] | None = None,
    model: str = "",
    label: str = "method",
    beside: Callable[[Mapping[str, Any]], pd.Series | None] | None = None,
) -> list[Result]:
    """Results from a table: one for each of its rows and quantities that has a number.

    Args:
        frame: columns `label`, the quantities, `<quantity>_low` and `_high` where there are intervals, and `model`
            where rows are of several models.
        item: of the paper, or "beyond".
        quantities: column to the quantity's name with its unit.
        published: column to the paper's column, where it has another name.
        model: of rows that name none.
        label: column of the rows' names.
        beside: from a row to the paper's row, a Series with `method` and its numbers, or None. By default, of a table,
            `analysis.paper.paper_row` of the row's name and model.
    """
    if beside is None and item.startswith("Table"):
        number = int(item.split()[1])

        def beside(row: Mapping[str, Any]) -> pd.Series | None:
            return paper_row(number, f"{row[label]} {row.get('model', model)}")

    found = []
    for row in frame.to_dict("records"):
        paper = None if beside is None else beside(row)
        for column, quantity in quantities.items():
            if column not in row or pd.isna(row[column]):
                continue
            theirs = None if paper is None else paper.get((published or {}).get(column, column))
            known = theirs is not None and not pd.isna(theirs)
            found.append(
                Result(
                    item=item,
                    quantity=quantity,
                    method=str(row[label]),
                    model=str(row.get("model", model)),
                    interval=Interval(
                        row[column], *(row.get(f"{column}_{end}", NOTHING.low) for end in ("low", "high"))
                    ),
                    paper=float(theirs) if known else None,
                    paper_method=str(paper["method"]) if known else "",
                )
            )
    return found


def beyond_rows(frame: pd.DataFrame, label: str, quantities: Mapping[str, str]) -> list[Result]:
    """`rows_of` for what the paper has no number for."""
    return rows_of(frame, item=BEYOND, quantities=quantities, label=label)
