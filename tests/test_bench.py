"""The benchmarks run from their command lines and write what they promise."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPT = FOLDER / "bench_capture.py"


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


@pytest.mark.slow
def test_ours_and_the_reference_way_ground_alike(tmp_path):
    sizes = ["--layers", "2", "--width", "32", "--heads", "4", "--repeats", "1", "--images", "2"]
    sizes += ["--sam-side", "128", "--sam-width", "32", "--sam-depth", "2"]
    command = [sys.executable, str(FOLDER / "bench_end_to_end.py"), *sizes, "--output", str(tmp_path)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "llava: 576 visual tokens" in finished.stdout and "llava_next: 2928 visual tokens" in finished.stdout
    results = json.loads((tmp_path / "end_to_end.json").read_text())["results"]
    for result in results.values():  # the batch's own rounding aside
        assert result["phrases"] > 5 and result["points_alike"] > 0.9 and result["masks_alike"] > 0.8
    with (tmp_path / "end_to_end.csv").open() as file:
        rows = list(csv.DictReader(file))
    ways = ["released", "set per phrase", "ours, one by one", "ours, in batches"]
    assert [(row["case"], row["way"]) for row in rows] == [(case, way) for case in results for way in ways]
    for row in rows:
        assert float(row["images_per_second"]) > 0 and float(row["ratio released"]) > 0


@pytest.mark.slow
def test_the_maps_of_more_visual_tokens_take_linear_memory(tmp_path):
    sizes = ["--grids", "6", "12", "--new-tokens", "9", "--repeats", "1", "--width", "32"]
    command = [sys.executable, str(FOLDER / "bench_tokens.py"), *sizes, "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = json.loads((tmp_path / "tokens.json").read_text())["rows"]
    assert (small["visual_tokens"], large["visual_tokens"], large["new_tokens"]) == (36, 144, 9)
    assert large["maps_mib"] == 4 * small["maps_mib"] and large["eager_prefill_mib"] > 6 * small["eager_prefill_mib"]
    assert small["reading_s"] > 0
