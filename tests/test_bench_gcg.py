"""The benchmark of GCG's scores runs from its command line and measures the scoring that the notebook does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments):
    command = [sys.executable, str(BENCHMARKS / "bench_gcg.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


def test_nothing_to_measure_is_refused():
    finished = run("--images", "0")
    assert finished.returncode == 2 and "at least one image" in finished.stderr


@pytest.mark.slow
def test_the_benchmark_on_a_few_images(tmp_path):
    finished = run("--images", "20", "--draws", "50", "--output", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert "20 images, 6 true and 8 predicted masks of 480 x 640 pixels each" in finished.stdout
    found = json.loads((tmp_path / "gcg.json").read_text())
    assert set(found["seconds"]) == {"annotations", "scores", "intervals", "all"}
    assert found["seconds"]["all"] == pytest.approx(sum(list(found["seconds"].values())[:3]))
    assert all(0 < low <= value <= high < 1 for value, low, high in found["metrics"].values() if value)
    assert found["metrics"]["recall"][0] > 0.1
