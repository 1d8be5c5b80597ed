"""The claims as tables: encoders against CLIP, sinks, equation 3 by the answers' length, places; in percent."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.claims.intervals import paired_difference, pooled_share
from analysis.claims.record import Claims, label
from analysis.results import Result, beyond_rows
from analysis.scoring.comparison import told_apart
from embedded.encoder_study.variants import TABLE5

REFERENCE = "clip"
PAIRS = (
    *((variant.name, REFERENCE) for variant in TABLE5 if variant.name != REFERENCE),
    ("difflmm", "llava_two_stages"),
)
THIRDS = ("shortest third", "middle third", "longest third")


def encoder_table(claims: Claims, *, seed: int = 0) -> pd.DataFrame:
    """PAcc (with equation 3) of every visual encoder, and minus that of CLIP after the same training.

    Returns:
        One row for each of `PAIRS` that is recorded with a seed in common: `method`, `against`, `seeds` (in common),
        `named` (precision and recall of the pairs that are named, in percent, of both models, in words), `PAcc`,
        `PAcc of the other`, `difference` with `_low` and `_high` (95 %, paired over seeds and images), `told apart`.
    """
    rows = []
    for name, other in PAIRS:
        if name not in claims.models or other not in claims.models:
            continue
        ours, theirs = (claims.counts(each, "hits", "phrases") for each in (name, other))
        common = tuple(sorted(set(ours.seeds) & set(theirs.seeds)))
        if not common:
            continue
        apart = paired_difference(ours, theirs, seed=seed)
        row = {"method": label(name), "against": label(other), "seeds": _seeds(common)}
        row |= {"named (precision/recall)": f"{_naming(claims, name)} against {_naming(claims, other)}"}
        row |= {"PAcc": 100 * pooled_share(ours.of(common)).value}
        row |= {"PAcc of the other": 100 * pooled_share(theirs.of(common)).value}
        rows.append({**row, **apart.columns("difference"), "told apart": told_apart(apart.low, apart.high)})
    columns = ["method", "against", "seeds", "named (precision/recall)", "PAcc", "PAcc of the other"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "difference_low", "difference_high", "told apart"])


def sink_table(claims: Claims) -> pd.DataFrame:
    """Whether register-like visual tokens arise, one row per model.

    Returns:
        `method`; `tokens` (mean of the answers); in percent: `to the picture` (of all attention), `on one cell`, `on
        five` (of the visual attention, in the answer's mean map), `same cell` (answers whose most attended cell is the
        most frequent one), `off objects` (answers whose most attended cell holds no object), `steady` (tokens whose own
        map is brightest there), `answers with registers`, `attention on them`, `phrases on them` (whose points lie
        there without equation 3), `with eq. 3`, `on first token` (of all attention; of the sequence, a word or a cell);
        `cell ratio` (most attended cell over the median one, median of the answers); `norm ratio` and `first norm`
        (largest visual hidden state, and that of the first token, over the median visual one, in the layer where it is
        largest).
    """
    rows = []
    for name in claims.models:
        mean = {field: 100 * float(claims.values(name, field).mean()) for field in ("visual", "top1", "top5")}
        cells, phrases = claims.values(name, "cell").ravel(), max(1, int(claims.values(name, "phrases").sum()))
        on = {field: 100 * claims.values(name, field).sum() / phrases for field in ("raw_on_register", "on_register")}
        rows.append(
            {
                "method": label(name),
                "tokens": float(claims.values(name, "tokens").mean()),
                "to the picture": mean["visual"],
                "on one cell": mean["top1"],
                "on five": mean["top5"],
                "cell ratio": float(np.median(claims.values(name, "ratio"))),
                "same cell": 100 * np.bincount(cells).max() / len(cells),
                "off objects": 100 * float(claims.values(name, "off_objects").mean()),
                "steady": 100 * float(claims.values(name, "steady").mean()),
                "answers with registers": 100 * float((claims.values(name, "registers") > 0).mean()),
                "attention on them": 100 * float(claims.values(name, "registered").mean()),
                "phrases on them": float(on["raw_on_register"]),
                "with eq. 3": float(on["on_register"]),
                "on first token": 100 * claims.layers(name, "first_token")[0],
                "norm ratio": max(claims.layers(name, "largest")),
                "first norm": max(claims.layers(name, "first")),
            }
        )
    return pd.DataFrame(rows)


def equation3_table(claims: Claims, *, seed: int = 0) -> pd.DataFrame:
    """PAcc without and with equation 3 and the paired difference, of all answers and of thirds by their length.

    Returns:
        `method`, `answers` ("all" or one of `THIRDS`), `tokens` (smallest to largest length), `phrases`, `without`,
        `with`, `difference` with `_low` and `_high` (with minus without; 95 %).
    """
    rows = []
    for name in claims.models:
        lengths = claims.values(name, "tokens")
        with_, without = (claims.counts(name, field, "phrases") for field in ("hits", "raw_hits"))
        edges = np.quantile(lengths, [1 / 3, 2 / 3])
        third = np.searchsorted(edges, lengths, side="left")
        for said, chosen in (("all", lengths >= 0), *((said, third == i) for i, said in enumerate(THIRDS))):
            if not chosen.any():
                continue
            parts = [each.where(chosen) for each in (with_, without)]
            apart = paired_difference(*parts, seed=seed)
            row = {
                "method": label(name),
                "answers": said,
                "tokens": f"{lengths[chosen].min()} to {lengths[chosen].max()}",
            }
            row |= {"phrases": int(parts[0].whole.sum()), "without": 100 * pooled_share(parts[1]).value}
            rows.append(row | {"with": 100 * pooled_share(parts[0]).value, **apart.columns("difference")})
    return pd.DataFrame(rows)


def places_table(claims: Claims, *, seed: int = 0) -> pd.DataFrame:
    """How often what an answer says of a place is right: `method`, `seeds`, `told` (places), `right` with `_low` and
    `_high` (percent, 95 % over seeds and images).
    """
    rows = []
    for name in claims.models:
        counts = claims.counts(name, "places_right", "places")
        row = {"method": label(name), "seeds": _seeds(counts.seeds), "told": int(counts.whole.sum())}
        rows.append(row | pooled_share(counts, seed=seed).columns("right"))
    return pd.DataFrame(rows)


def claim_results(claims: Claims) -> list[Result]:
    """What was measured, for the report's summary; the paper has no number for it."""
    parts = (
        (encoder_table(claims), {"difference": "PAcc minus that of CLIP (percentage points)"}),
        (equation3_table(claims).query("answers == 'all'"), {"difference": "PAcc with minus without eq. 3 (points)"}),
        (places_table(claims), {"right": "places told right (%)"}),
    )
    return [result for frame, quantities in parts for result in beyond_rows(frame, "method", quantities)]


def _naming(claims: Claims, name: str) -> str:
    shares = (pooled_share(claims.counts(name, "right", whole)).value for whole in ("said", "true"))
    return " / ".join(f"{100 * share:.0f}" for share in shares)


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"{len(seeds)} ({', '.join(map(str, seeds))})"
