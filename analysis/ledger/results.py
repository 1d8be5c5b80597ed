"""The ledger's differences between systems, and its rows for the report's summary."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.ledger.ledger import BINS, BOUNDS, Ledger
from analysis.results import BEYOND, Result
from analysis.scoring.metrics import Interval


def ledger_differences(ledgers: Mapping[str, Ledger], *, seed: int = 0) -> pd.DataFrame:
    """Every share minus that of the first system, in percentage points, with paired intervals over images."""
    first, *others = ledgers
    rows = []
    for label in others:
        for column in (*BINS, *BOUNDS):
            found = ledgers[first].difference(ledgers[label], column, seed=seed)
            row = {"method": label, "object": column}
            rows.append(row | found.columns("difference", ends=("low", "high")))
    return pd.DataFrame(rows, columns=["method", "object", "difference", "low", "high"])


def ledger_results(table: pd.DataFrame, models: Mapping[str, str] | None = None) -> list[Result]:
    """The shares of `analysis.ledger.ledger.ledger_table`, a column for each bin and bound; `models` are the systems'
    by label.
    """
    return [
        Result(
            item=BEYOND,
            quantity=f"{row['object']} (% of objects)",
            method=row["method"],
            model=(models or {}).get(row["method"], ""),
            interval=Interval(row["share"], row["low"], row["high"]),
        )
        for row in table.to_dict("records")
    ]
