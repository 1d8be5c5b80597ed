"""Each claim in one plain sentence, from its numbers: reproduced, not told apart, or refuted at this scale."""

from __future__ import annotations

import pandas as pd

from analysis.claims.record import Claims
from analysis.claims.tables import encoder_table, equation3_table, places_table, sink_table
from analysis.scoring.metrics import Interval

BAR = 70.0  # percent of places told right
OFTEN, SELDOM = 50.0, 10.0  # percent of the answers


def verdict(low: float, high: float) -> str:
    """Of a claim that something is larger than 0."""
    return "reproduced" if low > 0 else "refuted at this scale" if high < 0 else "not told apart"


def encoder_reading(claims: Claims) -> str:
    """Claim: a diffusion encoder makes an LMM point better than CLIP does (Tables 1 and 5 of the paper)."""
    table = encoder_table(claims)
    rows = table[table["method"].str.startswith("DiffLMM")]
    if rows.empty:
        return "No diffusion variant is recorded beside CLIP yet, so the claim is open."
    return "\n".join(
        f"{row['method']} points better than {row['against']}: {_told(row)} (seeds: {row['seeds']})."
        for row in rows.to_dict("records")
    )


def sink_reading(claims: Claims) -> str:
    """Claim: some visual tokens attract attention at every step, whatever is said (Figure 6 of the paper)."""
    lines = []
    for row in sink_table(claims).to_dict("records"):
        share = row["answers with registers"]
        arise = "arise" if share >= OFTEN else "arise in some answers" if share >= SELDOM else "do not arise"
        lines.append(
            f"Register-like visual tokens {arise} in {row['method']}: in {share:.0f} % of the answers a cell without "
            f"an object holds five times its even share or more, {row['attention on them']:.0f} % of the visual "
            f"attention in all; without equation 3 {row['phrases on them']:.1f} % of the phrases point there, with it "
            f"{row['with eq. 3']:.1f} %."
        )
    return "\n".join(lines)


def equation3_reading(claims: Claims) -> str:
    """Claim: equation 3 makes the points better (Table 4 of the paper)."""
    table = equation3_table(claims)
    return "\n".join(
        f"Equation 3 raises PAcc of {row['method']}: {_told(row)} on {row['phrases']} phrases "
        f"({row['without']:.1f} % without, {row['with']:.1f} % with)."
        for row in table[table["answers"] == "all"].to_dict("records")
    )


def places_reading(claims: Claims) -> str:
    """Bar: places are told right in `BAR` percent."""
    lines = []
    for row in places_table(claims).to_dict("records"):
        if pd.isna(row["right"]):
            lines.append(f"{row['method']} tells no place of an object that is there.")
            continue
        reached = "reached" if row["right_low"] >= BAR else "missed" if row["right_high"] < BAR else "not told apart"
        told = _interval(row, "right").percent()
        lines.append(f"{row['method']} tells {told} of {row['told']} places right: {BAR:.0f} % {reached}.")
    return "\n".join(lines)


def _told(row: dict) -> str:
    apart = _interval(row, "difference")
    return f"{verdict(apart.low, apart.high)}, {apart.points()}"


def _interval(row: dict, name: str) -> Interval:
    return Interval(*(row[f"{name}{end}"] / 100 for end in ("", "_low", "_high")))
