"""Heads by what is known of them: statistics by hand and as a peer's code has them, held-out choices, correlations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tiny_coco
import torch
from scipy.stats import spearmanr
from tiny_coco import MASKS, grounding, matcher

from analysis.heads.points import measure_head_points, phrase_head_maps
from analysis.heads.scores import head_scores, head_table, rank_correlations
from analysis.heads.selection import (
    ALL,
    AVERAGE,
    CRITERIA,
    choose_heads,
    chosen_points,
    elbow,
    localization_votes,
    reading,
    selection_table,
)
from analysis.heads.statistics import (
    AGREEMENT,
    ENTROPY,
    HEAD_MAPS,
    MASS,
    agreement_with_others,
    measure_head_maps,
    measure_head_statistics,
    spatial_entropy,
)
from analysis.scoring.coco import load_instances
from core.attention import mean_over_heads, to_grid
from core.errors import GroundingError
from core.pipeline import ground, phrase_maps

LAYERS, HEADS = 2, 3
RIGHT = 4  # layer 1 head 1 looks at what is named


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco")))


# ---- statistics


def test_one_region_has_no_entropy_and_equal_regions_have_that_of_their_number():
    grid = np.zeros((6, 8))
    grid[1:3, 1:3] = 0.1
    assert spatial_entropy(grid) == 0.0
    grid[4, 6] = 0.4  # as much as the four cells, less the mean: (0.4 - m) and 4 (0.1 - m), where m = 0.8 / 48
    shares = np.array([0.4 - 1 / 60, 4 * (0.1 - 1 / 60)])
    shares /= shares.sum()
    assert spatial_entropy(grid) == pytest.approx(-(shares * np.log(shares)).sum())


def test_cells_that_touch_at_a_corner_are_one_region():
    grid = np.zeros((5, 5))
    grid[1, 1] = grid[2, 2] = 0.3
    assert spatial_entropy(grid) == 0.0
    grid[2, 2], grid[3, 3] = 0.0, 0.3
    assert spatial_entropy(grid) == pytest.approx(np.log(2))


@pytest.mark.parametrize("grid", [np.zeros((3, 4)), np.full((3, 4), 0.01), 1e-5 * np.arange(12.0).reshape(3, 4)])
def test_a_map_without_a_region_is_as_scattered_as_can_be(grid):
    assert spatial_entropy(grid) == pytest.approx(np.log(12))


def test_entropy_and_elbow_are_those_of_the_criterions_authors():
    """Numbers of `LocalizationHeadsFinder.spatial_entropy` and `find_elbow_point` (github.com/seilk/LocalizationHeads,
    commit 8ce33b0) for these maps and curve.
    """
    rng, theirs = np.random.default_rng(7), {(5, 6): 1.537348, (10, 10): 0.509938, (24, 24): 2.887639, (8, 3): 0.946683}
    for size, expected in theirs.items():
        grid = rng.random(size) ** 6
        assert spatial_entropy((grid / grid.sum() * 0.3).astype(np.float32)) == pytest.approx(expected, abs=2e-6)
    assert elbow(rng.random(32) ** 4) == pytest.approx(0.07541194898708242)


def naive_entropy(grid: np.ndarray) -> float:
    """The same by flooding cells one after another."""
    above = np.maximum(grid - grid.mean(), 0)
    left = {cell for cell in product(*map(range, grid.shape)) if above[cell] > 0.001}
    total, entropy = above.sum(), 0.0
    while left:
        region, mass = [left.pop()], 0.0
        while region:
            y, x = region.pop()
            mass += above[y, x]
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            region += near
        entropy -= mass / total * np.log(mass / total)
    return entropy


def test_entropy_equals_a_naive_flood():
    rng = np.random.default_rng(3)
    for _ in range(20):
        grid = rng.random((7, 9)) ** 5 * 0.2
        assert spatial_entropy(grid) == pytest.approx(naive_entropy(grid), abs=1e-9)


def test_agreement_is_the_correlation_with_the_mean_of_the_others():
    maps = torch.rand(2, 4, 30, generator=torch.Generator().manual_seed(0))
    found = agreement_with_others(maps)
    for phrase, head in product(range(2), range(4)):
        others = np.delete(maps[phrase].numpy(), head, axis=0).mean(axis=0)
        assert found[phrase, head] == pytest.approx(np.corrcoef(maps[phrase, head].numpy(), others)[0, 1], abs=1e-5)
    assert (agreement_with_others(torch.ones(1, 3, 5)) == 0).all()
    assert (agreement_with_others(torch.rand(1, 1, 5)) == 0).all()


def planted(image_id: int, said, *, seed: int = 0, right: int = RIGHT):
    """An answer in which one head looks at the named things and no other does."""
    size, rng = tiny_coco.SIZES[image_id], torch.Generator().manual_seed(100 * seed + image_id)
    answer = grounding(size, [(noun, (0.5, 0.5), [mask]) for noun, mask in said])
    view = answer.generation.views[0]
    shape = (len(answer.generation.token_ids), LAYERS * HEADS, view.index.numel())
    heads = 0.01 * torch.rand(shape, generator=rng)
    for number, (_, mask) in enumerate(said):
        rows, columns = np.nonzero(mask)
        row, column = int(rows.mean() * view.shape[0] / size[0]), int(columns.mean() * view.shape[1] / size[1])
        heads[2 * number + 1, :, view.index[-1, -1]] = 0.3
        heads[2 * number + 1, right, view.index[-1, -1]] = 0.0
        heads[2 * number + 1, right, view.index[row, column]] = 0.8
    per_head = heads.reshape(shape[0], LAYERS, HEADS, shape[2])
    generation = replace(answer.generation, attention_per_head=per_head, attention=mean_over_heads(per_head))
    picture = np.zeros((*size, 3), dtype=np.uint8)
    found = ground(generation, picture, segmenter=None, nlp=None, phrases=answer.phrases)
    kept = measure_head_points(found) | measure_head_statistics(found) | measure_head_maps(found)
    return str(image_id), replace(found, measured=kept)


def records(**options):
    """Three images with matched phrases, and one whose phrase matches nothing."""
    said = {
        3: [("star", MASKS[1][3]), ("kitten", MASKS[2][3])],
        7: [("cat", MASKS[4][3])],
        12: [("plant", MASKS[7][3])],
        30: [("rock", MASKS[8][3])],
    }
    return [planted(image_id, nouns, **options) for image_id, nouns in said.items()]


def test_what_is_kept_is_of_the_raw_and_of_the_normalised_maps():
    _, found = records()[0]
    raw = torch.stack([phrase_head_maps(found.generation, p, normalization="none") for p in found.phrases])
    own = torch.stack([phrase_head_maps(found.generation, p) for p in found.phrases])
    torch.testing.assert_close(found.measured[MASS], raw.sum(-1))
    grids = to_grid(raw, found.view).numpy()
    for place in product(range(2), range(LAYERS), range(HEADS)):
        assert found.measured[ENTROPY][place] == pytest.approx(spatial_entropy(grids[place]), abs=1e-6)
    torch.testing.assert_close(found.measured[HEAD_MAPS], own)
    torch.testing.assert_close(own.mean((1, 2)), phrase_maps(found.generation, found.phrases), atol=1e-6, rtol=0)
    assert found.measured[AGREEMENT].shape == (2, LAYERS, HEADS)


def test_an_answer_without_phrases_has_statistics_of_none():
    answer = grounding((40, 60), [])
    per_head = torch.rand(1, LAYERS, HEADS, 30)
    found = replace(answer, generation=replace(answer.generation, attention_per_head=per_head))
    for name, values in (measure_head_statistics(found) | measure_head_maps(found)).items():
        assert values.shape[:3] == (0, LAYERS, HEADS), name


# ---- choosing


def test_votes_by_hand():
    mass = np.array([[0.9, 0.8, 0.85, 0.1, 0.1, 0.05]] * 2)  # the line's distance is largest at 0.1
    entropy = np.array([[2.0, 1.0, 3.0, 0.5, 9.0, 0.0], [1.0, 2.0, 3.0, 9.0, 9.0, 0.0]])
    assert elbow(mass[0]) == 0.1
    passing = 5  # all but the last, whose entropy is lowest
    assert passing > 2
    assert localization_votes(mass, entropy, votes=2).tolist() == [0.5, 1.0, 0.0, 0.5, 0.0, 0.0]
    assert localization_votes(mass, entropy).tolist() == [0.5, 1.0, 0.0, 0.5, 0.0, 0.0]  # half of five
    assert localization_votes(mass[:0], entropy[:0]).tolist() == 6 * [0.0]


def test_the_planted_head_is_chosen_by_annotations_and_points_right_on_the_images_left_out(dataset):
    stored = records()
    scores = head_scores(stored, dataset, matcher())
    assert scores.shape == (LAYERS, HEADS) and len(scores.frame) == 5 and scores.matched.sum() == 4
    choice = choose_heads(scores, folds=2)
    assert sorted(np.bincount(choice.fold)) == [2, 3]
    table = selection_table(scores, choice, stored, top=2).set_index("heads")
    best = table.loc["highest PAcc (supervised), 1 head"]
    assert best["PAcc"] == 100.0 and best["chosen"] == "layer 1 head 1"
    assert table.loc[ALL, "PAcc"] == 0.0 and best["difference"] == 100.0
    assert table.loc[AVERAGE, "PAcc"] == pytest.approx(100 * scores.hits.values[:, :-1].mean())
    assert (table["n_phrases"] == 4).all() and len(table) == 2 + 2 * len(CRITERIA)
    assert "highest PAcc (supervised), 1 head: 100.0 %" in reading(table.reset_index(), rank_correlations(scores))


def test_no_image_takes_part_in_the_choice_of_the_heads_that_point_on_it(dataset):
    """Two images on which other heads are right: each is pointed on by the head that was right on the other."""
    star, cat = MASKS[1][3], MASKS[4][3]
    stored = [planted(3, [("star", star)], right=0), planted(7, [("cat", cat)], right=5)]
    few = dataset.head(2)
    scores = head_scores(stored, few, matcher())
    table = selection_table(scores, choose_heads(scores), stored).set_index("heads")
    best = table.loc["highest PAcc (supervised), 1 head"]
    assert best["PAcc"] == 0.0 and set(best["chosen"].split("; ")) == {
        "layer 0 head 0 (1 of 2)",
        "layer 1 head 2 (1 of 2)",
    }


def test_each_criterion_ranks_by_its_own_mean(dataset):
    scores = head_scores(records(), dataset, matcher())
    everything = np.ones(5, dtype=bool)
    table = head_table(scores)
    by_name = {name: int(np.argmax(criterion(scores, everything))) for name, criterion in CRITERIA.items()}
    assert by_name["most image mass"] == table["image mass"].idxmax()
    assert by_name["lowest spatial entropy"] == table["spatial entropy"].idxmin()
    assert by_name["most agreement"] == table["agreement with the other heads"].idxmax()
    assert by_name["highest PAcc (supervised)"] == table["PAcc"].idxmax() == RIGHT
    assert table["PAcc"].iloc[RIGHT] == 100.0


def test_a_sets_points_are_those_of_its_mean_map():
    _, found = records()[0]
    picture = np.zeros((*found.image_size, 3), dtype=np.uint8)
    sets = [[0, 1, 2], [RIGHT], list(range(LAYERS * HEADS))]
    points = chosen_points(found, sets)
    options = {"segmenter": None, "nlp": None, "phrases": found.phrases}
    chosen = [{"layers": [0]}, {"layers": [1], "heads": [1]}, {}]
    for column, changes in enumerate(chosen):
        expected = ground(found.generation, picture, **options, **changes).points
        assert np.array_equal(points[:, column], expected.numpy())


def test_without_the_maps_of_heads_single_ones_are_still_compared(dataset):
    bare = [
        (key, replace(found, measured={name: x for name, x in found.measured.items() if name != HEAD_MAPS}))
        for key, found in records()
    ]
    scores = head_scores(bare, dataset, matcher())
    table = selection_table(scores, choose_heads(scores), bare)
    assert len(table) == 2 + len(CRITERIA) and not table["heads"].str.contains("3 heads").any()
    with pytest.raises(GroundingError, match="holds no head_maps"):
        chosen_points(bare[0][1], [[0]])


def test_correlations_are_spearmans(dataset):
    scores = head_scores(records(), dataset, matcher())
    table, heads = rank_correlations(scores).set_index("statistic"), head_table(scores)
    for name in ("image mass", "agreement with the other heads"):
        assert table.loc[name, "correlation"] == pytest.approx(spearmanr(heads[name], heads["PAcc"])[0])
        assert table.loc[name, "low"] <= table.loc[name, "high"] and table.loc[name, "n_heads"] == 6
    assert heads["spatial entropy"].nunique() == 1  # one peak each: all alike, so nothing to correlate
    assert np.isnan(table.loc["spatial entropy", "correlation"])


def test_nothing_matched_is_nan_and_said_so(dataset):
    stored = [planted(30, [("rock", MASKS[8][3])]), planted(12, [])]
    scores = head_scores(stored, dataset, matcher())
    table, correlations = selection_table(scores, choose_heads(scores), stored), rank_correlations(scores)
    assert table["PAcc"].isna().all() and correlations["correlation"].isna().all()
    assert reading(table, correlations).startswith("No phrase matched")


def test_what_cannot_be_compared_is_refused(dataset):
    with pytest.raises(GroundingError, match="answer at least one image"):
        head_scores([], dataset, matcher())
    scores = head_scores(records()[:1], dataset.head(1), matcher())
    with pytest.raises(GroundingError, match="give at least two"):
        choose_heads(scores)
    more = head_scores(records(), dataset, matcher())
    with pytest.raises(GroundingError, match="give the same records"):
        selection_table(more, choose_heads(more), records()[:1])
