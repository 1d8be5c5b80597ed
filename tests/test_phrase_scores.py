"""Matching and scoring in one place: against a loop over phrases and points, and laws of the frame."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_coco
from tiny_coco import MASKS, grounding, vectors_nlp

from analysis.scoring.coco import load_instances
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.phrases import PHRASE_COLUMNS, difference, match_phrases, score_chance, score_points
from core.errors import GroundingError

SAID = {
    3: [("star", MASKS[1][3]), ("rock", MASKS[1][3]), ("kitten", MASKS[2][3])],
    7: [("cat", MASKS[4][3]), ("cat", MASKS[4][3])],
    30: [],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco")))


def records():
    rng = np.random.default_rng(1)
    for image_id, said in SAID.items():
        height, width = tiny_coco.SIZES[image_id]
        points = [(noun, (rng.uniform(0, width), rng.uniform(0, height)), [mask]) for noun, mask in said]
        yield str(image_id), grounding((height, width), points)


def several(answer, m: int = 4):
    """m points for each phrase, the first its own."""
    rng = np.random.default_rng([answer.image_size[0], len(answer.phrases)])
    height, width = answer.image_size
    more = rng.uniform(0, 1, (len(answer.phrases), m - 1, 2)) * [width, height]
    return np.concatenate([answer.points.numpy()[:, None], more], axis=1)


@pytest.fixture(scope="module")
def found(dataset):
    return match_phrases(records(), dataset, CategoryMatcher(vectors_nlp()), points=several)


def test_the_frame_has_a_row_for_each_phrase(found):
    frame = found.frame
    assert list(frame.columns) == PHRASE_COLUMNS
    assert frame["image_id"].tolist() == [3, 3, 3, 7, 7] and frame["phrase"].tolist() == [0, 1, 2, 0, 1]
    assert frame["category"].tolist() == ["star", "", "cat", "cat", "cat"]
    assert frame["category_id"].isna().tolist() == [False, True, False, False, False]
    assert np.array_equal(frame[["x", "y"]].to_numpy(), found.points[:, 0])
    assert found.matched.frame.index.tolist() == [0, 2, 3, 4] and found.matched.points.shape == (4, 4, 2)
    assert found.matched.matched.frame.equals(found.matched.frame)


def test_scores_are_those_of_a_loop(found, dataset):
    scores = score_points(found, dataset)
    chance = score_chance(found, dataset)
    rows = [row for row in found.frame.itertuples() if row.category]
    for number, row in enumerate(rows):
        union = np.zeros(tiny_coco.SIZES[row.image_id], dtype=bool)
        for image_id, category_id, _, mask, _ in MASKS.values():
            if (image_id, category_id) == (row.image_id, row.category_id):
                union |= mask.astype(bool)
        for column in range(4):
            x, y = found.points[row.Index, column]
            assert scores.values[number, column] == union[int(y), int(x)]
        assert chance.values[number, 0] == pytest.approx(union.mean())
    assert 0 < scores.values.mean() < 1
    order = [image.id for image in dataset.images]
    of_image = np.array([row.image_id for row in rows])
    for column in range(4):
        expected = [scores.values[of_image == image_id, column].sum() for image_id in order]
        assert scores.sums[column].tolist() == expected
    assert scores.counts.tolist() == [int((of_image == image_id).sum()) for image_id in order]
    assert scores.means.tolist() == [scores.interval(column).value for column in range(4)]


def test_differences_are_paired_and_turn_round(found, dataset):
    scores = score_points(found, dataset)
    there, back = difference(scores, scores, (0, 1)), difference(scores, scores, (1, 0))
    assert there.value == pytest.approx(scores.means[1] - scores.means[0]) == -back.value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = difference(scores, scores, (2, 2))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_nothing_is_nan(dataset):
    nothing = match_phrases([], dataset, CategoryMatcher(vectors_nlp()))
    scores = score_points(nothing, dataset)
    assert np.isnan(scores.means).all() and np.isnan(scores.interval().value)
    assert np.isnan(difference(scores, scores, (0, 1)).value)
    assert np.isnan(score_chance(nothing, dataset).means[0])


def test_records_with_different_numbers_of_points_are_refused(dataset):
    with pytest.raises(GroundingError, match=r"have \[3, 4\] points for each phrase"):
        match_phrases(
            records(),
            dataset,
            CategoryMatcher(vectors_nlp()),
            points=lambda answer: several(answer, 3 + (answer.image_size[0] == tiny_coco.SIZES[3][0])),
        )
