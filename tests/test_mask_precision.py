"""AP and AR of any multiset of images: COCO's own evaluator on really repeated images, intervals, differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco

from analysis.scoring.coco import load_instances
from analysis.scoring.metrics import AP_AR, mask_ap_ar
from analysis.scoring.precision import DRAWS, MaskScores, mask_difference, mask_scores, mask_table
from core.errors import GroundingError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="module")
def results(dataset):
    """Shifted and noisy copies of the objects, each under several scores, and masks where there is nothing."""
    return some_results(0)


def some_results(seed: int):
    rng = np.random.default_rng(seed)
    found = []
    for image_id, category, _, mask, _ in tiny_coco.MASKS.values():
        for _ in range(4):
            moved = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1)) ^ (rng.random(mask.shape) < 0.03)
            about = {"image_id": image_id, "category_id": category if rng.random() < 0.8 else 1}
            found.append(about | {"segmentation": tiny_coco.compressed(moved), "score": float(rng.random())})
    return found


def repeated(dataset, results, counts):
    """The dataset and the results with every image so many times, each copy under an id of its own."""
    images, annotations, found = [], {}, []
    for image, times in zip(dataset.images, counts, strict=True):
        for copy in range(times):
            key = 1000 * copy + image.id
            images.append(replace(image, id=key))
            annotations[key] = tuple(one | {"image_id": key} for one in dataset.annotations.get(image.id, ()))
            found += [one | {"image_id": key} for one in results if one["image_id"] == image.id]
    return replace(dataset, images=tuple(images), annotations=annotations), found


def test_one_of_each_image_is_cocos_own_number(dataset, results):
    scores, expected = mask_scores(results, dataset), mask_ap_ar(results, dataset)
    assert list(scores.values) == list(AP_AR)
    for name in AP_AR:
        assert scores.values[name] == pytest.approx(expected[name], abs=1e-12)
    assert 0 < scores.values["AP"] < 1 and len({round(value, 6) for value in scores.values.values()}) > 4


def test_repeated_images_are_what_coco_makes_of_their_copies(dataset, results):
    scores, rng = mask_scores(results, dataset), np.random.default_rng(1)
    counts = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [0, 3, 0, 1, 1], [0, 0, 0, 5, 0], *rng.integers(0, 3, (4, 5))])
    found = scores.of(counts)
    for row, times in enumerate(counts):
        expected = mask_ap_ar(*reversed(repeated(dataset, results, times)))
        for name in AP_AR:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), (name, times)


def test_an_interval_lies_around_its_value_and_is_the_same_each_time(dataset, results):
    scores, again = mask_scores(results, dataset, seed=3), mask_scores(results, dataset, seed=3)
    for name in ("AP", "AR", "AP_S"):
        interval = scores.interval(name)
        assert interval.low < interval.value < interval.high and interval == again.interval(name)
    assert len(scores.resampled["AP"]) == DRAWS


def test_a_difference_is_paired(dataset, results):
    first, second = mask_scores(results, dataset), mask_scores(some_results(5), dataset)
    apart = mask_difference(first, second, "AR")
    assert apart.value == pytest.approx(second.values["AR"] - first.values["AR"])
    same = mask_difference(first, mask_scores(results, dataset), "AR")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(GroundingError, match="cannot be paired"):
        mask_difference(first, mask_scores(results, dataset.head(3)), "AR")
    with pytest.raises(GroundingError, match="seeds 0 and 1"):
        mask_difference(first, mask_scores(results, dataset, seed=1), "AR")


def test_the_table_has_a_row_for_each_metric_that_there_is(dataset, results):
    few = dataset.head(3)  # nothing is larger than 96 x 96
    table = mask_table({"random": mask_scores([], few), "ours": mask_scores(results, few)}, "random")
    assert table["metric"].tolist() == 2 * ["AP_S", "AP_M", "AP", "AR_S", "AR_M", "AR"]
    ours = table[table["method"] == "ours"].set_index("metric")
    assert table[table["method"] == "random"]["difference"].isna().all()
    assert ours.loc["AP", "value"] == ours.loc["AP", "difference"] > 0  # from 0
    with pytest.raises(GroundingError, match="no row 'chance'"):
        mask_table({"ours": mask_scores(results, few)}, "chance")


def test_no_masks_are_zero_and_no_objects_nan(dataset, results):
    none = mask_scores([], dataset)
    assert none.values["AP"] == none.values["AR_M"] == 0.0 and none.interval("AP").high == 0.0
    bare = replace(dataset, images=(dataset.image(20),), annotations={20: ()})
    assert all(np.isnan(value) for value in mask_scores([], bare).values.values())
    assert np.isnan(mask_scores(results, bare).interval("AP").low)


def test_many_draws_are_done_in_parts(dataset, results, monkeypatch):
    scores = mask_scores(results, dataset)
    whole = scores.of(np.ones((7, 5), dtype=int))
    monkeypatch.setattr("analysis.scoring.precision.AT_ONCE", 400)
    parts = MaskScores(scores.ranked, scores.recalls, scores.n_images).of(np.ones((7, 5), dtype=int))
    assert all(np.array_equal(whole[name], parts[name]) for name in AP_AR)
