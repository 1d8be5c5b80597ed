"""Every family that has an adapter passes the doctor, line by line."""

from __future__ import annotations

import pytest
import torch
from plain_towers import transparent
from tiny_cambrian import tiny_cambrian
from tiny_families import BUILDERS

from core.doctor import LINES, examine
from core.lmm import load_lmm

SHOWN = {"gemma4": transparent}  # a random tower of it scatters a place over the whole grid
BLURRED = {"fast_vlm"}  # random convolutions, each a little off the middle, tell a place to within a cell only


ALL = BUILDERS | {"cambrian": tiny_cambrian}


@pytest.mark.parametrize("name", ALL)
def test_every_family_passes_every_line(name, tmp_path):
    geometry = "pan-and-scan" if name.endswith("pan_and_scan") else "processor"
    lmm = load_lmm(ALL[name](tmp_path), device="cpu", dtype=torch.float32, geometry=geometry)
    found = examine(SHOWN.get(name, lambda same: same)(lmm), progress=False)
    failed = {each.line.split(":")[0] for each in found.findings if each.status != "pass"}
    assert {each.line.split(":")[0] for each in found.findings} == set(LINES)
    assert failed == ({"cell to pixel"} if name in BLURRED else set()), str(found)
