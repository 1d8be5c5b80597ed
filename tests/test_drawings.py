"""Figures drawn again look as they did, from plain files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import Normalize
from PIL import Image
from tiny_coco import grounding, rectangle

from analysis.conversation.figure import conversation_figure
from analysis.conversation.objects import drawn_answer
from analysis.drawings import keep_figure, redraw, redraw_all
from analysis.figures import plot_intervals, plot_map_on_image
from analysis.heads.figures import plot_head_accuracy
from core.errors import GroundingError

SIZE = (60, 90)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Figures of every kind of argument: pictures, tensors, frames with missing values, dataclasses, colour scales."""
    folder = tmp_path_factory.mktemp("report") / "job" / "figures"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    frame = pd.DataFrame(
        {
            "method": ["one", "two"],
            "PAcc": [30.0, np.nan],
            "low": [20.0, np.nan],
            "high": [40.0, np.nan],
            "n": pd.array([3, None], dtype="Int64"),
        },
        index=[4, 7],
    )
    answer = grounding(SIZE, [("star", (20.5, 20.5), [rectangle(SIZE, 5, 5, 35, 45)])])
    keep_figure(folder, "map", plot_map_on_image, picture, torch.rand(3, 4), (-5.0, 0.0, 95.0, 60.0), point=(3.5, 4.5),
                norm=Normalize(0.0, 0.9), title="a map")  # fmt: skip
    keep_figure(folder, "intervals", plot_intervals, frame, label="method", title="some <intervals>")
    keep_figure(folder, "answer", conversation_figure, picture, drawn_answer(answer), "Describe.", title="above")
    keep_figure(folder, "heads", plot_head_accuracy, np.array([[10.0, np.nan]]), reference=20.0)
    plt.close("all")
    return folder


@pytest.mark.parametrize("name", ["map", "intervals", "answer", "heads"])
def test_a_figure_drawn_again_is_the_same_to_the_pixel(folder, name):
    first, numbers = pixels(folder / f"{name}.png"), (folder / f"{name}.csv").read_text()
    (folder / f"{name}.png").unlink()
    redraw(folder / f"{name}.npz")
    assert np.array_equal(pixels(folder / f"{name}.png"), first)
    assert (folder / f"{name}.csv").read_text() == numbers and (folder / f"{name}.pdf").stat().st_size > 500
    plt.close("all")


def test_all_figures_of_a_report_are_drawn_without_torch_and_without_pickles(folder):
    output = folder.parent.parent
    code = (
        "import sys\nfrom analysis.report.figures import main\n"
        f"assert main(['--output', {str(output)!r}, '--style', 'dark_background']) == 0\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    before = pixels(folder / "heads.png")
    root = Path(__file__).resolve().parents[1]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout == f"4 figures drawn in {output}\nFalse False\n"
    assert not np.array_equal(pixels(folder / "heads.png"), before)  # the style shows
    redraw_all(output)
    assert np.array_equal(pixels(folder / "heads.png"), before)


def test_every_plot_module_is_free_of_torch():
    root = Path(__file__).resolve().parents[1]
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts) for path in (root / "analysis").rglob("figure*.py")
    ]
    modules += ["analysis.mosaics", "analysis.training.losses", "analysis.drawings", "analysis.results"]
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert len(modules) > 8 and found.stdout == "False\n"


def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(GroundingError, match="a object cannot be kept"):
        keep_figure(tmp_path, "odd", plot_intervals, object(), label="method")
    with pytest.raises(GroundingError, match="no plot function of a module of analysis"):
        keep_figure(tmp_path, "odd", plt.plot, [1])
    with pytest.raises(GroundingError, match="no plot function of a module of analysis"):
        keep_figure(tmp_path, "odd", lambda: None)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_drawing_of_ours_are_refused(tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with pytest.raises(GroundingError, match=r"torn.npz holds no drawing of this version"):
        redraw(tmp_path / "torn.npz")
    recipe = {"plot": "os:remove", "args": ["x"], "kwargs": {}, "title": ""}
    np.savez(tmp_path / "foreign.npz", recipe=np.array(json.dumps(recipe)))
    with pytest.raises(GroundingError, match="no module of analysis"):
        redraw(tmp_path / "foreign.npz")
    with pytest.raises(GroundingError, match="no kept figures"):
        redraw_all(tmp_path)


def test_an_unknown_style_is_named(folder):
    with pytest.raises(GroundingError, match="knows no style 'fancy'"):
        redraw_all(folder.parent, style="fancy")
