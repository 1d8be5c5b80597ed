"""What a linear probe reads from the frozen features of the encoder variants, beside the losses of Tables 5 and 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.encoder_losses import read_record
from analysis.encoder_tables import describe_variants
from analysis.tables import Provenance
from core.embedded.probes import WORDS, probed_variants


def probe_table(source: str | Path, number: int) -> pd.DataFrame:
    """One row per variant of Table 5 or 6 with frozen features: mean average precision of the probe in percent.

    Args:
        source: as for `analysis.encoder_losses.load_stage_losses`.

    Returns:
        `label`, then a column for each kind of word (colour, category, texture, ground); missing where no probe was
        run. The last row is "chance", what random scores get.
    """
    probes = {row["variant"]: row for row in _probes(source)}
    rows = [
        {"label": row["label"], **_percent(probes.get(row["variant"], {}).get("mean_average_precision", {}))}
        for row in describe_variants(number).to_dict("records")
        if row["variant"] in probed_variants()
    ]
    first = next(iter(probes.values()), {})
    return pd.DataFrame([*rows, {"label": "chance", **_percent(first.get("chance", {}))}])


def probe_provenance(source: str | Path) -> Provenance:
    """What made the numbers of `probe_table`."""
    probes = _probes(source)
    settings = {"probes": "none were run"} if not probes else {**probes[0]["recipe"]}
    held_out = probes[0]["held_out_scenes"] if probes else 0
    return Provenance("embedded visual encoders, frozen features", "embedded scenes (held out)", held_out, settings)


def _probes(source: str | Path) -> list[dict[str, Any]]:
    record, _ = read_record(source)
    return record.get("probes", [])


def _percent(found: dict[str, float]) -> dict[str, float]:
    return {kind: 100 * found[kind] if kind in found else float("nan") for kind in WORDS}
