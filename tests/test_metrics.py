"""PAcc, AP, AR, random points and bootstrap intervals: laws, pycocotools called independently, and naive loops."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
import tiny_coco
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.scoring.coco import annotation_mask, load_instances
from analysis.scoring.metrics import (
    AP_AR,
    Interval,
    difference_interval,
    mask_ap_ar,
    per_image,
    point_hits,
    ratio_interval,
    resampled_interval,
)
from analysis.scoring.random_point import area_shares, random_points
from core.errors import GroundingError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_coco.write(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def dataset(path):
    return load_instances(path)


@pytest.fixture(scope="module")
def results():
    """Shifted and shrunk copies of the true masks, wrong categories and duplicates, with distinct scores."""
    rng = np.random.default_rng(1)
    found = []
    for image_id, category_id, _, mask, _ in tiny_coco.MASKS.values():
        for shift in (0, 2, 6, 11):
            moved = np.roll(mask, (shift, shift // 2), axis=(0, 1))
            wrong = rng.random() < 0.2
            found.append(
                {
                    "image_id": image_id,
                    "category_id": 5 if wrong else category_id,
                    "segmentation": tiny_coco.compressed(moved),
                    "score": float(rng.random()),
                }
            )
    return found


def reference(path, results, **params):
    """COCOeval on the file itself, through loadRes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "segm")
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# ---- the dataset


def test_every_spelling_of_a_mask_is_read(dataset):
    for image_id, entries in dataset.annotations.items():
        for entry in entries:
            expected = tiny_coco.MASKS[entry["id"]][3]
            assert np.array_equal(annotation_mask(entry, dataset.image(image_id).size), expected)


def test_images_keep_their_sizes_and_files(dataset, path):
    assert {image.id: image.size for image in dataset.images} == tiny_coco.SIZES
    assert dataset.items()[0] == ("3", path.parent / "images" / "000003.png")
    assert dataset.annotated(3) == {1: "star", 5: "cat"}
    assert dataset.annotated(20) == {}


def test_union_holds_all_instances_and_crowds(dataset):
    stars = tiny_coco.MASKS[1][3] | tiny_coco.MASKS[3][3]
    assert np.array_equal(dataset.union_mask(3, 1), stars)
    assert np.array_equal(dataset.union_mask(7, 5), tiny_coco.MASKS[4][3] | tiny_coco.MASKS[6][3])
    assert np.array_equal(dataset.union_mask(7, 5, crowds=False), tiny_coco.MASKS[4][3])


def test_head_keeps_the_first_images_only(dataset):
    few = dataset.head(2)
    assert [image.id for image in few.images] == [3, 7]
    assert set(few.annotations) == {3, 7}
    assert len(dataset.head(0)) == len(dataset.head(99)) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "holds a list"),
        ('{"images": []}', "lacks annotations, categories"),
        (
            json.dumps({"images": [], "annotations": [{"id": 4, "image_id": 1, "category_id": 2}], "categories": []}),
            "annotation 4 .* names image 1",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(GroundingError, match=message):
        load_instances(tmp_path / "bad.json")


def test_missing_file_and_unknown_image(dataset, tmp_path):
    with pytest.raises(GroundingError, match="cannot read the annotations"):
        load_instances(tmp_path / "none.json")
    with pytest.raises(GroundingError, match="no image with id '4'"):
        dataset.image("4")


def test_boxes_only_and_wrong_sizes_are_refused(dataset):
    with pytest.raises(GroundingError, match="has no segmentation"):
        annotation_mask({"id": 1, "image_id": 3}, (80, 120))
    with pytest.raises(GroundingError, match=r"mask of \(H, W\) \(80, 120\) in an image of \(120, 80\)"):
        annotation_mask({"id": 1, "segmentation": tiny_coco.compressed(tiny_coco.MASKS[1][3])}, (120, 80))


# ---- point accuracy


def test_point_hits_equal_a_naive_loop(dataset):
    rng = np.random.default_rng(0)
    rows = []
    for image_id, (height, width) in tiny_coco.SIZES.items():
        for _ in range(60):
            rows.append((image_id, int(rng.choice([1, 5, 9])), rng.uniform(0, width), rng.uniform(0, height)))
    points = pd.DataFrame(rows, columns=["image_id", "category_id", "x", "y"])
    expected = []
    for image_id, category_id, x, y in rows:
        inside = False
        for owner, category, _, mask, _ in tiny_coco.MASKS.values():
            if owner == image_id and category == category_id:
                inside |= bool(mask[int(y), int(x)])
        expected.append(inside)
    assert point_hits(points, dataset).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_pixels_are_half_open(dataset):
    corners = [(10.0, 20.0, True), (59.99, 69.99, True), (60.0, 69.5, False), (9.99, 20.5, False), (30.5, 70.0, False)]
    points = pd.DataFrame([(3, 1, x, y) for x, y, _ in corners], columns=["image_id", "category_id", "x", "y"])
    assert point_hits(points, dataset).tolist() == [hit for _, _, hit in corners]


def test_crowd_points_count_unless_excluded(dataset):
    point = pd.DataFrame([(7, 5, 50.5, 10.5)], columns=["image_id", "category_id", "x", "y"])
    assert point_hits(point, dataset).tolist() == [True]
    assert point_hits(point, dataset, crowds=False).tolist() == [False]


def test_a_point_outside_its_image_is_refused(dataset):
    swapped = pd.DataFrame([(7, 5, 100.5, 20.5)], columns=["image_id", "category_id", "x", "y"])  # (y, x) by mistake
    with pytest.raises(GroundingError, match=r"lies outside image 7 of \(H, W\) \(110, 60\)"):
        point_hits(swapped, dataset)


def test_no_points_no_hits(dataset):
    assert point_hits(pd.DataFrame(columns=["image_id", "category_id", "x", "y"]), dataset).tolist() == []


# ---- AP and AR


def test_ap_and_ar_equal_cocoeval_on_the_file(dataset, path, results):
    ours, stats = mask_ap_ar(results, dataset), reference(path, results).stats
    for name, place in AP_AR.items():
        assert ours[name] == pytest.approx(stats[place], abs=1e-12)
    assert stats.min() >= 0  # every size has objects
    assert 0 < ours["AP"] < 1
    assert len({round(value, 6) for value in ours.values()}) > 4


def test_ap_and_ar_equal_a_naive_loop(dataset, results):
    """All sizes, ten IoU thresholds, 101 recall points; crowd regions and what falls into them are left out."""
    thresholds = np.linspace(0.5, 0.95, 10)
    precisions, recalls = [], []
    for category_id in tiny_coco.CATEGORIES:
        for threshold in thresholds:
            precision, recall = naive_ap(results, category_id, threshold)
            precisions.append(precision)
            recalls.append(recall)
    ours = mask_ap_ar(results, dataset)
    assert ours["AP"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert ours["AR"] == pytest.approx(np.mean(recalls), abs=1e-9)


def naive_ap(results, category_id, threshold):
    truths = {
        number: {"image": image_id, "mask": mask, "crowd": crowd, "taken": False}
        for number, (image_id, category, crowd, mask, _) in tiny_coco.MASKS.items()
        if category == category_id
    }
    wanted = sum(not truth["crowd"] for truth in truths.values())
    right, wrong, curve = 0, 0, []
    for result in sorted((r for r in results if r["category_id"] == category_id), key=lambda r: -r["score"]):
        mask = rle.decode(result["segmentation"]).astype(bool)
        best, best_iou = None, threshold
        for truth in truths.values():
            if truth["image"] != result["image_id"] or truth["taken"] or truth["crowd"]:
                continue
            iou = (mask & truth["mask"]).sum() / (mask | truth["mask"]).sum()
            if iou >= best_iou:
                best, best_iou = truth, iou
        if best is not None:
            best["taken"] = True
            right += 1
        elif any(
            truth["crowd"] and truth["image"] == result["image_id"]
            and (mask & truth["mask"]).sum() / mask.sum() >= threshold
            for truth in truths.values()
        ):  # fmt: skip
            continue
        else:
            wrong += 1
        curve.append((right / wanted, right / (right + wrong)))
    at = np.linspace(0, 1, 101)
    precision = np.mean([max([p for r, p in curve if r >= point - 1e-12], default=0.0) for point in at])
    return precision, right / wanted


def test_perfect_masks_score_one_and_missing_sizes_are_nan(dataset):
    perfect = [
        {"image_id": image_id, "category_id": category, "segmentation": tiny_coco.compressed(mask), "score": 0.5}
        for image_id, category, crowd, mask, _ in tiny_coco.MASKS.values()
        if not crowd
    ]
    assert all(value == pytest.approx(1.0) for value in mask_ap_ar(perfect, dataset).values())
    scores = mask_ap_ar(perfect, dataset.head(3))
    assert scores["AP"] == scores["AR"] == pytest.approx(1.0)
    assert np.isnan(scores["AP_L"]) and np.isnan(scores["AR_L"])  # nothing is larger than 96 x 96
    assert scores["AP_S"] == scores["AP_M"] == pytest.approx(1.0)


def test_no_predictions_score_zero_and_no_truth_is_nan(dataset):
    assert mask_ap_ar([], dataset)["AP"] == 0.0
    assert mask_ap_ar([], dataset)["AR_M"] == 0.0
    empty = load_without_annotations(dataset)
    assert all(np.isnan(value) for value in mask_ap_ar([], empty).values())


def load_without_annotations(dataset):
    from dataclasses import replace

    images = (dataset.image(20),)
    return replace(dataset, images=images, annotations={20: ()})


def test_predictions_of_other_images_do_not_count(dataset, results):
    few = dataset.head(2)
    inside = [result for result in results if result["image_id"] in (3, 7)]
    assert mask_ap_ar(results, few) == pytest.approx(mask_ap_ar(inside, few), nan_ok=True)


def test_results_are_not_changed(dataset, results):
    before = json.dumps(results)
    mask_ap_ar(results, dataset)
    assert json.dumps(results) == before


# ---- intervals


def test_a_ratio_is_of_sums_not_of_images():
    interval = ratio_interval(np.array([1, 0]), np.array([1, 3]))
    assert interval.value == 0.25
    assert interval.low <= interval.value <= interval.high


def test_equal_images_leave_no_doubt():
    interval = ratio_interval(np.full(20, 3), np.full(20, 4))
    assert (interval.value, interval.low, interval.high) == (0.75, 0.75, 0.75)


def test_intervals_narrow_with_more_images_and_repeat_with_the_seed():
    rng = np.random.default_rng(0)
    hits, counts = rng.integers(0, 3, 1000), np.full(1000, 3)
    few, many = ratio_interval(hits[:40], counts[:40]), ratio_interval(hits, counts)
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert ratio_interval(hits, counts) == many
    assert ratio_interval(hits, counts, seed=1) != many


def test_a_biased_number_can_be_centred():
    """The largest of ten values: resamples never lie above it."""
    values = np.arange(10.0)
    largest = lambda counts: np.where(counts > 0, values, -1).max(axis=1)  # noqa: E731
    plain, centred = (resampled_interval(largest, 10, centred=centred) for centred in (False, True))
    assert (plain.value, plain.high) == (9.0, 9.0) and centred.value == 9.0
    assert centred.low < 9.0 < centred.high and centred.high - centred.low == pytest.approx(plain.high - plain.low)


def test_bootstrap_spread_is_that_of_a_share():
    hits = (np.arange(400) < 100).astype(int)
    interval = ratio_interval(hits, np.ones(400), draws=4000)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.08)


def test_images_without_points_change_nothing_but_exist():
    assert ratio_interval(np.array([2, 0]), np.array([4, 0])).value == 0.5
    nothing = ratio_interval(np.array([0, 0]), np.array([0, 0]))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.percent() == "undefined (no samples)"
    assert np.isnan(ratio_interval(np.zeros(0), np.zeros(0)).value)


def test_a_paired_difference_knows_the_pairs():
    rng = np.random.default_rng(0)
    base, counts = rng.integers(0, 5, 200), np.full(200, 5)
    same = difference_interval((base, base), (counts, counts))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = difference_interval((base, base + 1), (counts, counts + 1))
    assert better.low > 0
    shifted = difference_interval((base, base[::-1].copy()), (counts, counts))
    assert shifted.value == pytest.approx(0.0) and shifted.low < 0 < shifted.high


def test_interval_in_words():
    assert Interval(0.5, 0.25, 0.75).percent() == "50.0 [25.0, 75.0] %"
    assert Interval(-0.024, -0.068, 0.019).points() == "-2.4 [-6.8, 1.9] percentage points"


def test_sums_per_image_follow_the_dataset(dataset):
    sums, counts = per_image(pd.Series([True, False, True]), pd.Series([7, 7, 3]), dataset)
    assert sums.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert counts.tolist() == [1, 2, 0, 0, 0]


# ---- the random baseline


def test_random_points_are_pixel_centres_one_per_annotated_category(dataset):
    points = random_points(dataset)
    pairs = [(3, 1), (3, 5), (7, 5), (7, 9), (12, 9), (30, 1)]
    assert list(zip(points["image_id"], points["category_id"], strict=True)) == pairs
    for _, row in points.iterrows():
        height, width = tiny_coco.SIZES[row["image_id"]]
        assert 0 < row["x"] < width and 0 < row["y"] < height
        assert row["x"] % 1 == row["y"] % 1 == 0.5


def test_random_points_depend_on_seed_draw_and_image_alone(dataset):
    assert random_points(dataset).equals(random_points(dataset))
    assert not random_points(dataset, draw=1).equals(random_points(dataset))
    assert not random_points(dataset, seed=1).equals(random_points(dataset))
    few = random_points(dataset.head(1))
    assert few.equals(random_points(dataset).iloc[: len(few)])


def test_random_points_hit_as_often_as_areas_say(dataset):
    shares = area_shares(dataset)
    expected = {
        (3, 1): (50 * 50 + 10 * 15) / (80 * 120), (3, 5): 40 * 25 / (80 * 120),
        (7, 5): (30 * 90 + 20 * 20) / (110 * 60), (7, 9): 25 * 60 / (110 * 60), (12, 9): 16 * 32 / (64 * 64),
        (30, 1): 120 * 110 / (130 * 150),
    }  # fmt: skip
    for row in shares.itertuples(index=False):
        assert row.share == pytest.approx(expected[(row.image_id, row.category_id)])
    draws = pd.concat([random_points(dataset, draw=draw) for draw in range(300)], ignore_index=True)
    measured = point_hits(draws, dataset).mean()
    spread = np.sqrt((shares["share"] * (1 - shares["share"])).mean() / len(draws))
    assert abs(measured - shares["share"].mean()) < 4 * spread
