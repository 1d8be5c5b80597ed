"""What a linear probe reads from the frozen features of the encoder variants, beside the losses of Tables 5 and 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.encoders.losses import read_record
from analysis.encoders.rows import describe_variants
from analysis.tables import Provenance
from embedded.encoder_study.probes import WORDS, probed_variants


def load_probes(source: str | Path = "") -> list[dict[str, Any]]:
    """The finished probes, none if none was run.

    Args:
        source: as for `analysis.encoders.losses.load_stage_losses`.
    """
    record, _ = read_record(source)
    return record.get("probes", [])


def probe_table(probes: Sequence[Mapping[str, Any]], number: int) -> pd.DataFrame:
    """One row per variant of Table 5 or 6 with frozen features: mean average precision of the probe in percent.

    Returns:
        `label`, then a column for each kind of word (colour, category, texture, ground); missing where no probe was
        run. The last row is "chance", what random scores get.
    """
    found = {row["variant"]: row["mean_average_precision"] for row in probes}
    frozen = probed_variants()
    rows = [
        {"label": row["label"], **_percent(found.get(row["variant"], {}))}
        for row in describe_variants(number).to_dict("records")
        if row["variant"] in frozen
    ]
    return pd.DataFrame([*rows, {"label": "chance", **_percent(probes[0]["chance"] if probes else {})}])


def probe_provenance(probes: Sequence[Mapping[str, Any]]) -> Provenance:
    """What made the numbers of `probe_table`."""
    settings = {"probes": "none were run"} if not probes else {**probes[0]["recipe"]}
    held_out = probes[0]["held_out_scenes"] if probes else 0
    return Provenance("embedded visual encoders, frozen features", "embedded scenes (held out)", held_out, settings)


def _percent(found: Mapping[str, float]) -> dict[str, float]:
    return {kind: 100 * found[kind] if kind in found else float("nan") for kind in WORDS}
