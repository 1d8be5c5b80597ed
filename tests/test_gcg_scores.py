"""Both protocols: the public evaluator's own numbers on random sets, independent loops, and cases done by hand."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import tiny_gcg
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_coco import compressed, rectangle

from analysis.gcg.dataset import GcgDataset, GcgImage
from analysis.gcg.grandf import load_gcg
from analysis.gcg.masks import empty_masks, iou_matrix
from analysis.gcg.predictions import open_predictions
from analysis.gcg.protocols import Overlap, Thresholds, glamm_counts, optimal_counts
from analysis.gcg.scores import METRICS, difference, score_predictions, score_systems
from analysis.gcg.similarity import PhraseSimilarity
from core.errors import GroundingError

# What the functions of eval/gcg/evaluate.py (mbzuai-oryx/groundingLMM) give for `tiny_gcg.write(seed=…, n=80)`, phrases
# compared by the vectors of `tiny_gcg.Vectors` through scikit-learn's cosines: AP50, mIoU, matched phrases.
GLAMMS = {
    0: (0.06899006714078057, 0.30677255160411365, 49, 211),
    1: (0.07729921928363048, 0.30896516504224464, 47, 204),
    2: (0.08961190885798599, 0.33782281472663794, 60, 221),
}


@pytest.fixture(scope="module", params=GLAMMS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def folder(seed, tmp_path_factory):
    return tiny_gcg.write(tmp_path_factory.mktemp("gcg") / "set", seed=seed, n=80)


@pytest.fixture(scope="module")
def dataset(folder):
    return load_gcg(folder)


@pytest.fixture(scope="module")
def predictions(folder, dataset):
    return open_predictions(folder / "predictions", dataset)


@pytest.fixture(scope="module")
def scores(predictions):
    return score_predictions(predictions, tiny_gcg.Vectors(), captions=False)


def decoded(codes):
    return [rle.decode(code).astype(bool) for code in codes]


VECTORS = tiny_gcg.Vectors()


def cosine(first, second):
    a, b = VECTORS.encode([first, second])
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# ---- GLaMM's protocol


def test_glamms_own_functions_give_the_same(seed, scores):
    ap50, miou, matched, true = GLAMMS[seed]
    assert scores.interval("AP50", draws=2).value == pytest.approx(ap50, abs=1e-15)
    assert scores.interval("mIoU", draws=2).value == pytest.approx(miou, abs=1e-15)
    assert (scores.counts["matched"].sum(), scores.counts["true"].sum()) == (matched, true)
    assert scores.interval("recall", draws=2).value == matched / true


def test_the_random_sets_hold_what_real_files_may(dataset, predictions):
    """Otherwise the numbers above would say less."""
    found = dict((image.id, prediction) for image, prediction in predictions)
    assert any(not image.captions for image in dataset.images) and any(
        len(image.captions) > 1 for image in dataset.images
    )
    assert any(not image.labels and not image.masks for image in dataset.images) and dataset.uneven()
    assert any(not each.phrases for each in found.values())
    assert any(len(each.phrases) != len(each.masks) for each in found.values())
    assert any(any(image.crowds) for image in dataset.images)
    both_empty = [
        empty_masks(image.masks).any() and empty_masks(found[image.id].masks).any() for image in dataset.images
    ]
    assert any(both_empty)


def test_every_image_equals_a_plain_loop_over_pixels(dataset, predictions, scores):
    for number, (image, found) in enumerate(predictions):
        own = {name: values[number] for name, values in scores.counts.items()}
        assert own["miou"] == plain_miou(decoded(found.masks), decoded(image.masks))
        assert own["matched"] == plain_matches(image, found)
        assert own["true"] == len(image.labels)


def iou(a, b):
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else None  # of two empty masks there is none


def plain_miou(predicted, true):
    pairs = {(i, j): iou(a, b) for (i, a), (j, b) in product(enumerate(predicted), enumerate(true))}
    if None in pairs.values():
        return 0.0
    taken = []
    while pairs and max(pairs.values()) > 0:
        best = max(pairs, key=lambda pair: (pairs[pair], [-place for place in pair]))
        taken.append(pairs[best])
        pairs = {pair: value for pair, value in pairs.items() if pair[0] != best[0] and pair[1] != best[1]}
    return float(np.mean(taken)) if taken else 0.0


def plain_matches(image, found):
    predicted, true = decoded(found.masks), decoded(image.masks)
    pairs = {
        (j, i): 2.0 if iou(a, b) is None else iou(a, b)
        for (j, b), (i, a) in product(enumerate(true), enumerate(predicted))
    }
    matched = 0
    while pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], [-place for place in pair]))
        if pairs[best] < 0.5:
            return matched
        if best[0] >= len(image.labels) or best[1] >= len(found.phrases):
            return 0
        if cosine(image.labels[best[0]], found.phrases[best[1]]) < 0.5:
            return matched
        matched += 1
        pairs = {pair: value for pair, value in pairs.items() if pair[0] != best[0] and pair[1] != best[1]}
    return matched


def overlap(iou, similarity, *, crowds=None, covered=None, empty=((), ())):
    iou, similarity = np.array(iou, float), np.array(similarity, float)
    return Overlap(
        iou=iou,
        covered=iou if covered is None else np.array(covered, float),
        similarity=similarity,
        crowds=np.zeros(iou.shape[1], bool) if crowds is None else np.array(crowds),
        empty_predicted=np.isin(np.arange(iou.shape[0]), empty[0]),
        empty_true=np.isin(np.arange(iou.shape[1]), empty[1]),
    )


def test_a_wrong_phrase_on_the_best_mask_ends_the_image_for_glamm_alone():
    case = overlap([[0.9, 0], [0, 0.8], [0.6, 0]], [[0.1, 0], [0, 1], [1, 0]])
    assert glamm_counts(case, Thresholds()).matched == 0
    found = optimal_counts(case, Thresholds())
    assert (found.matched, found.predicted, found.true) == (2, 3, 2)
    assert found.iou_sum == pytest.approx(1.7)


def test_the_optimal_assignment_finds_more_than_taking_the_best_first():
    case = overlap([[0.9, 0.8], [0.7, 0]], [[1, 1], [1, 1]])
    assert glamm_counts(case, Thresholds()).matched == 1
    assert optimal_counts(case, Thresholds()).matched == 2
    assert glamm_counts(case, Thresholds()).miou == 0.9
    assert optimal_counts(case, Thresholds()).iou_sum == pytest.approx(1.5)


def test_duplicate_masks_match_once_and_cost_precision():
    case = overlap([[1.0], [1.0]], [[1], [1]])
    assert glamm_counts(case, Thresholds()).matched == 1 and glamm_counts(case, Thresholds()).miou == 1.0
    found = optimal_counts(case, Thresholds())
    assert (found.matched, found.predicted, found.true, found.iou_sum) == (1, 2, 1, 1.0)


def test_crowds_are_masks_for_glamm_and_no_objects_otherwise():
    """The first phrase names the crowd that its mask lies in, the second something else there, the third the object."""
    crowd = {"crowds": [True, False], "covered": [[1.0, 0], [0.9, 0], [0, 0.6]]}
    case = overlap([[0.6, 0], [0.2, 0], [0, 0.6]], [[1, 0], [0, 1], [0, 1]], **crowd)
    assert glamm_counts(case, Thresholds()).matched == 2 and glamm_counts(case, Thresholds()).true == 2
    found = optimal_counts(case, Thresholds())
    assert (found.matched, found.predicted, found.true) == (1, 2, 1)
    assert found.iou_sum == pytest.approx(0.6)


@pytest.mark.parametrize(("p", "g"), [(0, 2), (2, 0), (0, 0)])
def test_nothing_on_a_side_is_no_error(p, g):
    case = overlap(np.zeros((p, g)), np.zeros((p, g)))
    assert (glamm_counts(case, Thresholds()).miou, glamm_counts(case, Thresholds()).matched) == (0.0, 0)
    found = optimal_counts(case, Thresholds())
    assert (found.matched, found.predicted, found.true, found.iou_sum) == (0, p, g, 0.0)


def test_two_empty_masks_are_glamms_best_pair_and_nothing_optimally():
    case = overlap([[0, 0], [0, 0.9]], [[1, 0], [0, 1]], empty=([0], [0]))
    assert glamm_counts(case, Thresholds()).matched == 2 and glamm_counts(case, Thresholds()).miou == 0.0
    assert optimal_counts(case, Thresholds()).matched == 1


def test_phrases_and_masks_that_do_not_pair_up_count_against():
    case = overlap([[0.9, 0], [0, 0.9]], [[1, 0]])  # the second mask has no phrase
    assert glamm_counts(case, Thresholds()).matched == 0  # the evaluator drops such an image's matches
    found = optimal_counts(case, Thresholds())
    assert (found.matched, found.predicted, found.true) == (1, 2, 2)


def test_thresholds_are_least_values_above_zero():
    case = overlap([[0.5]], [[0.5]])
    assert glamm_counts(case, Thresholds()).matched == optimal_counts(case, Thresholds()).matched == 1
    assert optimal_counts(case, Thresholds(iou=0.51)).matched == 0
    assert glamm_counts(case, Thresholds(similarity=0.51)).matched == 0
    with pytest.raises(GroundingError, match=r"the iou threshold is 0\.0; give a number above 0"):
        Thresholds(iou=0.0)


# ---- optimal assignments


def test_no_assignment_matches_more(predictions, scores):
    for number, (image, found) in enumerate(predictions):
        if len(found.masks) + len(image.masks) > 8:
            continue  # too many assignments to try them all
        true = [place for place, crowd in enumerate(image.crowds) if not crowd]
        matrix = iou_matrix(found.masks, image.masks)
        best_matches, best_sum = brute_force(matrix, true, image, found)
        assert scores.counts["optimal_matched"][number] == best_matches
        assert scores.counts["iou_sum"][number] == pytest.approx(best_sum)
        assert scores.counts["optimal_true"][number] == max(len(image.labels), len(image.masks)) - sum(image.crowds)
        said = max(len(found.phrases), len(found.masks))
        assert best_matches <= scores.counts["optimal_predicted"][number] <= said


def brute_force(matrix, true, image, found):
    matches = total = 0
    same = np.array([[cosine(said, label) >= 0.5 for label in image.labels] for said in found.phrases])
    places = [*range(len(found.masks)), *[None] * len(true)]
    for chosen in set(permutations(places, len(true))):
        pairs = [(i, j) for i, j in zip(chosen, true, strict=True) if i is not None]
        good = [
            matrix[i, j] >= 0.5 and i < len(found.phrases) and j < len(image.labels) and same[i, j] for i, j in pairs
        ]
        matches, total = max(matches, sum(good)), max(total, sum(matrix[pair] for pair in pairs))
    return matches, total


def test_recall_is_at_least_glamms_without_crowds_and_empty_masks(predictions, scores):
    for number, (image, found) in enumerate(predictions):
        if not any(image.crowds) and not empty_masks(image.masks).any():
            assert scores.counts["optimal_matched"][number] >= scores.counts["matched"][number]
        assert found.masks is not None


# ---- AP50 and its resamples


def test_ap50_of_chosen_images_is_cocos_on_those_images(folder, predictions, scores):
    chosen = np.zeros(80, dtype=int)
    chosen[np.random.default_rng(0).permutation(80)[:50]] = 1
    kept = {image.id for image, there in zip(predictions.dataset.images, chosen, strict=True) if there}
    truth = json.loads((folder / "val_gcg_coco_mask_gt.json").read_text())
    for part, name in (("images", "id"), ("annotations", "image_id")):
        truth[part] = [each for each in truth[part] if each[name] in kept]
    (folder / "part.json").write_text(json.dumps(truth))
    results = [
        {"image_id": image.id, "category_id": 1, "segmentation": code, "score": 1.0}
        for image, found in predictions
        for code in found.masks
        if image.id in kept
    ]
    coco = COCO(str(folder / "part.json"))
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    both = scores.masks.ap50(np.stack([chosen, np.ones(80, dtype=int), np.zeros(80, dtype=int)]))
    assert both[0] == pytest.approx(evaluation.stats[1], abs=1e-15)
    assert both[1] == scores.interval("AP50", draws=2).value != both[0]
    assert np.isnan(both[2])


# ---- scores as a whole


def square_set(truths):
    """A dataset of one image for each list of labels; every label has its own square."""
    images = tuple(
        GcgImage(
            str(number), Path("none.png"), (40, 56), ("",), tuple(labels), squares(len(labels)), (False,) * len(labels)
        )
        for number, labels in enumerate(truths)
    )
    return GcgDataset("squares", images, tuple(range(len(images))))


def squares(n):
    return tuple(compressed(rectangle((40, 56), 8 * i, 0, 8 * i + 8, 30)) for i in range(n))


def written(tmp_path, dataset, phrases):
    tmp_path.mkdir(exist_ok=True)
    for image, said in zip(dataset.images, phrases, strict=True):
        if said is not None:
            inner = {"caption": " ".join(said), "phrases": list(said), "pred_masks": list(squares(len(said)))}
            (tmp_path / f"{image.id}.json").write_text(json.dumps(json.loads(json.dumps(inner))))
    return open_predictions(tmp_path, dataset)


def test_shares_and_missing_predictions_by_hand(tmp_path):
    dataset = square_set([["star", "cat"], [], ["star"], ["rock"]])
    found = written(tmp_path, dataset, [["star", "rock", "cat"], ["cat"], [], None])
    scores = score_predictions(found, tiny_gcg.Vectors(), captions=False)
    value = {metric: scores.interval(metric, draws=50).value for metric in METRICS}
    assert value["recall"] == 1 / 4 and value["mIoU"] == 1 / 4
    assert value["recall (optimal)"] == 1 / 4 and value["precision (optimal)"] == 1 / 4
    assert value["F1 (optimal)"] == 1 / 4 and value["mIoU (optimal)"] == 2 / 4
    assert np.isnan([value["METEOR"], value["CIDEr"]]).all()
    assert (scores.n_missing, scores.n_phrases, scores.n_images) == (1, 4, 4)
    assert scores.describe() == (
        "4 phrases on 4 images, compared by tiny vectors; "
        "1 images without a prediction count as answered with nothing; METEOR and CIDEr were not asked for."
    )


def test_a_set_without_any_phrase_or_mask_has_numbers_or_none(tmp_path):
    dataset = square_set([[], []])
    scores = score_predictions(written(tmp_path, dataset, [[], []]), tiny_gcg.Vectors(), captions=False)
    found = {metric: scores.interval(metric, draws=10).value for metric in METRICS}
    assert found.pop("mIoU") == 0.0
    assert all(np.isnan(value) for value in found.values())


def test_perfect_predictions_score_one(tmp_path):
    truths = [["star", "cat"], ["plant"], ["rock", "star", "kitten"]]
    dataset = square_set(truths)
    scores = score_predictions(written(tmp_path, dataset, truths), tiny_gcg.Vectors(), captions=False)
    for metric in METRICS[2:]:
        found = scores.interval(metric, draws=50)
        assert (found.value, found.low, found.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


def test_differences_are_paired(tmp_path):
    truths = [["star", "cat"], ["plant"], ["rock", "star", "cat"]] * 8
    dataset = square_set(truths)
    fewer = [labels[:1] for labels in truths]
    first, second = (
        score_predictions(written(tmp_path / name, dataset, said), tiny_gcg.Vectors(), captions=False)
        for name, said in (("one", fewer), ("two", truths))
    )
    better = difference(first, second, "recall")
    assert better.value == pytest.approx(1 - 24 / 48) and 0 < better.low <= better.value <= better.high
    for metric in METRICS[2:]:
        same = difference(second, second, metric, draws=50)
        assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert np.isnan(difference(first, second, "METEOR").value)
    with pytest.raises(GroundingError, match="no metric is called 'mAP'; choose one of METEOR"):
        first.interval("mAP")


def test_other_numbers_of_images_cannot_be_paired(tmp_path):
    few, many = square_set([["star"]]), square_set([["star"]] * 2)
    first = score_predictions(written(tmp_path / "one", few, [["star"]]), tiny_gcg.Vectors(), captions=False)
    second = score_predictions(written(tmp_path / "two", many, [["star"]] * 2), tiny_gcg.Vectors(), captions=False)
    with pytest.raises(GroundingError, match="1 and 2 images cannot be paired"):
        difference(first, second, "recall")


def test_several_systems_are_scored_as_each_alone(tmp_path):
    dataset = square_set([["star", "cat"], ["rock"]])
    found = {
        name: written(tmp_path / name, dataset, said)
        for name, said in {"one": [["star"], ["rock"]], "two": [["cat", "star"], None]}.items()
    }
    for label, own in score_systems(found, tiny_gcg.Vectors(), captions=False).items():
        alone = score_predictions(found[label], tiny_gcg.Vectors(), captions=False)
        assert {name: each.tolist() for name, each in own.counts.items()} == {
            name: each.tolist() for name, each in alone.counts.items()
        }
        assert (own.n_missing, own.n_phrases, own.describe()) == (alone.n_missing, alone.n_phrases, alone.describe())
    other = written(tmp_path / "other", square_set([["star", "cat"], ["rock"]]), [["star"], []])
    with pytest.raises(GroundingError, match="the predictions are of different datasets"):
        score_systems(found | {"other": other}, tiny_gcg.Vectors())


def test_intervals_hold_their_value_and_repeat_with_the_seed(scores):
    for metric in METRICS[2:]:
        found = scores.interval(metric, draws=300)
        assert found.low < found.value < found.high
        assert found == scores.interval(metric, draws=300) != scores.interval(metric, draws=300, seed=1)


# ---- phrases


def test_similarity_is_the_cosine_and_each_phrase_is_encoded_once():
    class Counting(tiny_gcg.Vectors):
        seen = ()

        def encode(self, texts):
            self.seen = (*self.seen, *texts)
            return super().encode(texts)

    encoder = Counting()
    similarity = PhraseSimilarity(encoder)
    found = similarity.matrix(["a star", "sun", "wordless"], ["sun", "a cat"])
    expected = [[cosine(a, b) for b in ("sun", "a cat")] for a in ("a star", "sun")]
    assert found[:2] == pytest.approx(np.array(expected), abs=1e-6)
    assert found[2].tolist() == [0.0, 0.0]  # no vector, no similarity
    similarity.matrix(["sun"], ["a star", "rock"])
    assert sorted(encoder.seen) == ["a cat", "a star", "rock", "sun", "wordless"]
    assert similarity.matrix([], ["sun"]).shape == (0, 1)
