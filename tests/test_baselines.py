"""Baselines of the pilot study: where their points lie, and their PAcc beside the model's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco
import torch
from tiny_coco import MASKS, grounding, matcher

from analysis.pilot_study.baselines import (
    CENTRE,
    CHANCE,
    MOST,
    OWN,
    baseline_points,
    baseline_table,
    baselines_of,
    reading,
)
from analysis.scoring.coco import load_instances
from analysis.scoring.figures import plot_compared
from core.records import RunStore

GRID = (5, 6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco")))


def answer(image_id: int, said, cell: tuple[int, int]):
    """An answer that names nouns at points of its own and looks hardest at one cell of the grid all the time."""
    maps = np.full((2 * len(said) + 1, *GRID), 0.01)
    maps[:, *cell] = 0.5
    size = tiny_coco.SIZES[image_id]
    return str(image_id), grounding(size, [(noun, point, [mask]) for noun, point, mask in said], maps=maps)


def records():
    star, cat = MASKS[1][3], MASKS[4][3]
    return [
        answer(3, [("star", (30.5, 40.5), star), ("cat", (5.5, 5.5), MASKS[2][3])], (2, 1)),
        answer(7, [("cat", (10.5, 10.5), cat)], (4, 5)),
    ]


def test_the_blind_points_are_the_same_for_every_phrase_and_lie_where_they_should():
    (_, wide), (_, tall) = records()
    for found, (height, width) in ((baseline_points(wide), (80, 120)), (baseline_points(tall), (110, 60))):
        assert (found[:, 1] == (width / 2 + 0.5, height / 2 + 0.5)).all()
        assert (found[:, 1:] == found[:1, 1:]).all()
    assert (baseline_points(wide)[:, 0] == [(30.5, 40.5), (5.5, 5.5)]).all()
    x, y = baseline_points(wide)[0, 2]
    assert 20 <= x < 40 and 32 <= y < 48  # column 1 of 6 in 120 pixels, row 2 of 5 in 80
    x, y = baseline_points(tall)[0, 2]
    assert 50 <= x < 60 and 88 <= y < 110


def test_an_odd_image_has_its_middle_pixel_in_the_middle():
    odd = grounding((5, 7), [("star", (0.5, 0.5), [])])
    assert (baseline_points(odd)[0, 1] == (3.5, 2.5)).all()


def test_the_same_phrases_are_scored_by_hand(dataset):
    table = baseline_table(records(), dataset, matcher()).set_index("points")
    # own: star hit, cat of image 3 missed, cat of image 7 hit; centre (60.5, 40.5) is on nothing, (30.5, 55.5) on
    # nothing; the mean map of image 3 peaks on the star for both phrases, that of image 7 on the plant's corner
    assert list(table.index) == [OWN, CENTRE, MOST, CHANCE] and (table["n_phrases"] == 3).all()
    assert table.loc[OWN, "PAcc"] == pytest.approx(200 / 3)
    assert table.loc[CENTRE, "PAcc"] == 0.0 and table.loc[MOST, "PAcc"] == pytest.approx(100 / 3)
    assert table.loc[CENTRE, "difference"] == pytest.approx(-200 / 3) and np.isnan(table.loc[OWN, "difference"])
    star, cat, cats = 2650 / 9600, 1000 / 9600, 3100 / 6600
    assert table.loc[CHANCE, "PAcc"] == pytest.approx(100 * (star + cat + cats) / 3)
    assert f"\n  {CENTRE}: lower, -66.7" in reading(table.reset_index())


def test_rows_of_several_models_say_whose_they_are(dataset, tmp_path):
    stores = {}
    for label in ("one", "two"):
        stores[label] = RunStore(tmp_path / label, {"model": label})
        for key, found in records():
            stores[label].write(key, found)
    single = baselines_of({"one": stores["one"]}, dataset, matcher())
    assert single["points"].tolist() == [OWN, CENTRE, MOST, CHANCE]
    both = baselines_of(stores, dataset, matcher())
    assert both["points"].tolist() == [f"{label}: {name}" for label in stores for name in single["points"]]
    assert both["PAcc"].tolist() == 2 * single["PAcc"].tolist()
    assert reading(both).count("\n") == 6  # a line each but for the models' own
    left, right = plot_compared(both, OWN).axes
    assert len(left.get_yticklabels()) == 8 and left.get_ylim() == right.get_ylim()
    drawn = {line.get_label(): line.get_xdata()[0] for line in right.lines if "interval" not in line.get_label()}
    assert set(drawn) == {"no difference", *(name for name in both["points"] if not name.endswith(OWN))}
    assert drawn[f"two: {CENTRE}"] == pytest.approx(-200 / 3)


def test_nothing_matched_and_empty_answers_are_nan(dataset):
    empty = grounding((80, 120), [])
    said = {"token_ids": torch.zeros(0, dtype=torch.int64), "token_spans": torch.zeros(0, 2, dtype=torch.int64)}
    bare = replace(empty, generation=replace(empty.generation, attention=torch.zeros(0, 30), **said))
    table = baseline_table([("3", bare)], dataset, matcher())
    assert table["PAcc"].isna().all() and (table["n_phrases"] == 0).all()
    assert "nothing to compare" in reading(table)
