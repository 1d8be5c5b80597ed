"""The benchmark runs from its command line and writes what it promises."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "bench_capture.py"


@pytest.mark.slow
def test_the_benchmark_on_small_models(tmp_path):
    sizes = ["--layers", "2", "--width", "32", "--heads", "4", "--new-tokens", "3", "--repeats", "1"]
    command = [sys.executable, str(SCRIPT), *sizes, "--output", str(tmp_path)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "576 visual tokens, 3 new tokens" in finished.stdout
    assert "2928 visual tokens, 3 new tokens" in finished.stdout
    results = json.loads((tmp_path / "capture.json").read_text())["results"]
    with (tmp_path / "capture.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case, variant) for case in ("llava", "llava_next") for variant in ("plain", "maps", "per_head", "eager")
    ]
    for row in rows:
        assert float(row["wall_s"]) > 0
        assert float(row["peak_mib"]) > float(row["over_idle_mib"]) > 0
        assert float(row["peak_ratio"]) == results[row["case"]]["rows"][row["variant"]]["peak_ratio"]
    assert all(result["max_difference_to_eager"] < 1e-5 for result in results.values())
