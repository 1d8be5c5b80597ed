"""Plots: what is drawn is what was given (read back from the Axes), scales are shared, files hold the drawn numbers."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from tiny_coco import rectangle

import analysis.figures as figures
import analysis.heads.figures as head_figures
import analysis.mosaics as mosaics
import analysis.pilot_study.figures as pilot_figures
from analysis.paper import paper_methods, paper_table


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def data_images(ax):
    return [image for image in ax.images if image.get_gid() != figures.PICTURE]


def test_the_palette_has_ten_different_colours_far_apart():
    colours = np.array([to_rgb(colour) for colour in figures.PALETTE])
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 9 * np.eye(len(colours))
    assert len(colours) == 10 and distance.min() > 0.2


def test_scales_start_at_zero_or_are_symmetric():
    values = np.array([[0.1, 0.5], [0.2, 0.9]])
    assert (figures.shared_norm(values).vmin, figures.shared_norm(values).vmax) == (0.0, 0.9)
    norm = figures.shared_norm(values - 0.6, center=0.0)
    assert norm.vmin == pytest.approx(-0.5) and norm.vmax == pytest.approx(0.5)
    assert figures.shared_norm(np.zeros((2, 2))).vmax == 1.0
    assert figures.shared_norm(np.arange(101.0), quantile=0.9).vmax == pytest.approx(90)


def test_an_overlay_paints_each_mask_in_its_colour(picture):
    masks = [rectangle((40, 60), 0, 0, 20, 10), rectangle((40, 60), 30, 20, 50, 40)]
    _, ax = plt.subplots()
    back = figures.plot_overlay(picture, masks, ["#E69F00", "#0072B2"], points=[(10.5, 5.5), (40.5, 30.5)], ax=ax)
    assert back is ax
    layers = [np.asarray(image.get_array()) for image in ax.images[1:]]
    for layer, mask, colour in zip(layers, masks, ("#E69F00", "#0072B2"), strict=True):
        assert np.array_equal(layer[..., 3] > 0, mask)
        assert layer[0, 0, :3] == pytest.approx(to_rgb(colour))
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(10.5, 5.5), (40.5, 30.5)]
    assert ax.get_xlim() == (0, 60) and ax.get_ylim() == (40, 0)


@pytest.mark.parametrize("mask", [np.zeros((40, 60), bool), np.ones((40, 60), bool)])
def test_empty_and_full_masks_are_drawn_without_outline(picture, mask):
    assert len(figures.plot_overlay(picture, [mask], ["red"]).collections) == 0


def test_a_map_lies_in_its_views_box(picture):
    values = np.arange(6.0).reshape(2, 3)
    ax = figures.plot_map_on_image(picture, values, (-5.0, 0.0, 65.0, 40.0), point=(3.5, 4.5))
    (drawn,) = data_images(ax)
    assert np.array_equal(np.asarray(drawn.get_array()), values)
    assert drawn.get_extent() == [-5.0, 65.0, 40.0, 0.0]
    assert ax.get_xlim() == (0, 60)  # the picture, not the padding


def test_a_mosaic_draws_every_map_on_one_scale_in_reading_order():
    maps = np.random.default_rng(0).normal(size=(7, 4, 5))
    ax = mosaics.plot_mosaic(maps, [f"t{i}" for i in range(7)], columns=3, center=0.0)
    drawn = data_images(ax)
    assert [image.get_label() for image in drawn] == [f"t{i}" for i in range(7)]
    for image, values in zip(drawn, maps, strict=True):
        np.testing.assert_array_equal(np.asarray(image.get_array()), values)
        assert image.norm is drawn[0].norm
    assert drawn[0].norm.vmin == -drawn[0].norm.vmax == pytest.approx(-np.abs(maps).max())
    lefts = [image.get_extent()[0] for image in drawn]
    tops = [image.get_extent()[3] for image in drawn]
    assert lefts[0] == lefts[3] < lefts[1] < lefts[2] and tops[0] == tops[2] < tops[3] < tops[6]


def test_captions_are_taken_literally():
    ax = mosaics.plot_mosaic(np.ones((2, 2, 2)), ["$x^2", "a_b$"], columns=2)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == ["$x^2", "a_b$"]


def test_an_empty_mosaic_is_empty():
    ax = mosaics.plot_mosaic(np.zeros((0, 3, 3)), [], columns=4)
    assert data_images(ax) == []


def test_head_maps_stand_in_layers_and_heads():
    maps = np.random.default_rng(0).random((3, 2, 4, 4))
    ax = head_figures.plot_head_maps(maps)
    drawn = {image.get_label(): np.asarray(image.get_array()) for image in data_images(ax)}
    assert len(drawn) == 6
    np.testing.assert_array_equal(drawn["layer 2 head 1"], maps[2, 1])
    assert {"layer 0", "layer 2", "head 1"} <= {text.get_text() for text in ax.texts}


def test_head_accuracy_marks_the_mean_and_chance_on_the_colour_bar():
    percent = np.array([[10.0, 60.0], [30.0, 5.0]])
    ax = head_figures.plot_head_accuracy(percent, reference=46.6, chance=4.0)
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), percent)
    bar = ax.figure.axes[1]
    marks = {line.get_label(): line.get_ydata()[0] for line in bar.lines}
    assert marks == {"mean over all heads": 46.6, "random point": 4.0}
    assert {text.get_text() for text in ax.texts} == {"10", "60", "30", "5"}


def test_head_accuracy_of_nothing_is_drawn_without_marks():
    ax = head_figures.plot_head_accuracy(np.full((2, 2), np.nan), reference=float("nan"), chance=float("nan"))
    ax.figure.canvas.draw()
    assert len(ax.figure.axes[1].lines) == 0


def test_intervals_are_drawn_where_they_are():
    frame = pd.DataFrame({"maps": ["a", "b"], "PAcc": [10.0, 20.0], "low": [5.0, np.nan], "high": [15.0, np.nan]})
    ax = figures.plot_intervals(frame, label="maps")
    lines = {line.get_label(): line.get_xdata() for line in ax.lines}
    np.testing.assert_array_equal(lines["a: interval"], [5, 15])
    assert lines["a"] == [10] and lines["b"] == [20] and len(lines) == 3
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]


def table():
    columns = ["AP_S", "AP_M", "AP_L", "AP", "AR_S", "AR_M", "AR_L", "AR"]
    rows = [
        {"method": "Random Point", "PAcc": 4.0, "PAcc_low": 3.0, "PAcc_high": 5.0} | dict.fromkeys(columns, 1.0),
        {"method": "expected", "PAcc": 4.5, "PAcc_low": 4.0, "PAcc_high": 5.0},
        {"method": "attend-and-segment", "PAcc": 50.0, "PAcc_low": 45.0, "PAcc_high": 55.0}
        | dict.fromkeys(columns, 20.0),
    ]
    return pd.DataFrame(rows)


def test_the_pilot_figure_keeps_ours_and_the_papers_apart():
    paper = paper_table(1).assign(method=paper_methods(1))
    figure = pilot_figures.plot_pilot_study(table(), paper, headline="measured here: tiny")
    ours, published = figure.axes
    assert ours.get_title(loc="left") == "measured here: tiny"
    assert published.get_title(loc="left").startswith("published: paper, Table 1")
    assert [line.get_xdata()[0] for line in published.lines] == paper["PAcc"].tolist()
    assert 50.0 in [line.get_xdata()[0] for line in ours.lines]
    assert ours.get_xlim() == published.get_xlim()


def test_scores_by_size_are_bars_of_the_rows_that_have_them():
    ax = pilot_figures.plot_scores_by_size(table())
    assert [bars.get_label() for bars in ax.containers] == ["Random Point", "attend-and-segment"]
    assert [bar.get_height() for bar in ax.containers[1]] == [20.0] * 8


def test_saved_files_hold_the_drawn_numbers(tmp_path, picture):
    maps = np.random.default_rng(0).random((2, 3, 4))
    fig, (left, right) = plt.subplots(1, 2)
    mosaics.plot_mosaic(maps, ["cat", "dog"], columns=2, ax=left)
    left.set_title("maps")
    right.set_title("points")
    figures.plot_overlay(picture, [], [], ax=right)
    right.plot([1.0, 2.0], [3.0, 4.0], label="line")
    right.bar([5.0], [6.0], label="bar")
    paths = figures.save_figure(fig, tmp_path / "new" / "folder", "name")
    assert [path.name for path in paths] == ["name.png", "name.pdf", "name.csv"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].read_bytes().startswith(b"%PDF")
    numbers = pd.read_csv(paths[2])
    cells = numbers[(numbers["axes"] == "maps") & (numbers["artist"] == "dog")]
    back = np.zeros((3, 4))
    back[cells["row"], cells["column"]] = cells["value"]
    np.testing.assert_allclose(back, maps[1], rtol=1e-5)
    line = numbers[numbers["artist"] == "line"]
    assert line[["x", "y"]].to_numpy().tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert numbers[numbers["kind"] == "bar"][["x", "y"]].to_numpy().tolist() == [[5.0, 6.0]]
    assert set(numbers["axes"]) >= {"maps", "points"} and len(numbers[numbers["kind"] == "map"]) == 24


def test_a_figure_without_numbers_has_an_empty_csv(tmp_path, picture):
    ax = figures.plot_overlay(picture, [], [])
    csv = figures.save_figure(ax, tmp_path, "picture")[2]
    assert csv.read_text().strip() == "axes,artist,kind,row,column,x,y,value"
