"""The error ledger: every object in exactly one bin, the assignment against brute force, and cases done by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import tiny_coco
import tiny_sam
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from tiny_coco import MASKS, SIZES, grounding, matcher, rectangle

from analysis.ledger.figures import plot_ledger
from analysis.ledger.ledger import BINS, BOUNDS, keep_ledger, ledger_table, mentions, object_ends, reading, true_objects
from analysis.ledger.mentions import mention_results, mention_table
from analysis.ledger.mentions import reading as mentions_reading
from analysis.ledger.oracle import inner_point, oracle_overlaps
from analysis.ledger.results import ledger_differences, ledger_results
from analysis.scoring.coco import load_instances
from analysis.settings import Settings
from core.errors import GroundingError

STAR, CAT, SMALL_STAR = (MASKS[number][3] for number in (1, 2, 3))
ELSEWHERE = rectangle(SIZES[3], 0, 70, 10, 80)
IN_STAR, IN_CAT, IN_SMALL, NOWHERE = (30.5, 40.5), (90.5, 15.5), (105.5, 65.5), (5.5, 75.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco"), images=True))


def ends(dataset, said):
    """Bins of image 3's objects: a large star, a cat, a small star."""
    answer = None if said is None else grounding(SIZES[3], said)
    return object_ends(answer, true_objects(dataset, 3), dataset, SIZES[3], matcher())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, ["not said", "not said", "not said"]),
        ([("star", IN_STAR, [STAR])], ["counted", "not said", "not said"]),
        ([("star", NOWHERE, [STAR])], ["counted", "not said", "not said"]),  # the mask decides
        ([("star", IN_SMALL, [ELSEWHERE])], ["not said", "not said", "segmenter missed"]),
        ([("cat", NOWHERE, [ELSEWHERE])], ["not said", "attention missed", "not said"]),
        ([("cat", IN_STAR, [STAR])], ["not said", "attention missed", "not said"]),  # another category's mask
        ([("star", IN_STAR, [STAR]), ("star", IN_STAR, [STAR])], ["counted", "not said", "attention missed"]),
        ([("sun", IN_STAR, [STAR]), ("kitten", IN_CAT, [CAT])], ["counted", "counted", "not said"]),  # alike enough
        ([("rock", IN_STAR, [STAR])], ["not said", "not said", "not said"]),  # matches nothing
        ([("cat", IN_CAT, [])], ["not said", "segmenter missed", "not said"]),  # no mask at all
    ],
)
def test_cases_by_hand(dataset, said, expected):
    assert ends(dataset, said) == expected


def test_a_category_that_is_named_without_a_phrase_is_no_match(dataset):
    from dataclasses import replace

    answer = grounding(SIZES[3], [("rock", NOWHERE, [ELSEWHERE])])
    told = replace(answer, generation=replace(answer.generation, text="Stars and a Cat, a rock."))
    found = object_ends(told, true_objects(dataset, 3), dataset, SIZES[3], matcher())
    assert found == ["no match", "no match", "not said"]  # stars are named once, and there are two


def test_mentions_are_whole_words_with_plurals():
    assert mentions("A potted plant, potted plants; star starfish boxes", "potted plant") == 2
    assert mentions("star starfish STARS", "star") == 2 and mentions("boxes", "box") == 1 and mentions("", "star") == 0


boxes = st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(5, 30), st.integers(5, 20))
points = st.tuples(st.integers(0, 119), st.integers(0, 79))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["star", "cat", "rock"]), points, st.sampled_from([0, 1, 2]) | boxes), max_size=5
    )
)
def test_the_assignment_is_the_best_of_all_and_bins_add_up(dataset, said):
    def mask(kind):
        if isinstance(kind, int):
            return (STAR, CAT, SMALL_STAR)[kind]
        x, y, width, height = kind
        return rectangle(SIZES[3], x, y, x + width, y + height)

    answer = [(noun, (x + 0.5, y + 0.5), [mask(kind)]) for noun, (x, y), kind in said]
    found = ends(dataset, answer)
    assert len(found) == 3 and set(found) <= set(BINS)
    for category, own in {"star": (STAR, SMALL_STAR), "cat": (CAT,)}.items():
        mine = [(point, masks[0]) for noun, point, masks in answer if noun == category]
        kinds = [found[place] for place in ((0, 2) if category == "star" else (1,))]
        assert [kinds.count("counted"), kinds.count("segmenter missed")] == list(best(mine, own))
        assert len([kind for kind in kinds if kind in BINS[2:]]) == min(len(mine), len(own))


def best(phrases, objects):
    """(counted, point inside but not counted) of the best assignment, by trying them all."""

    def value(pairs):
        good = [iou(mask, true) >= 0.5 for (_, mask), true in pairs]
        inside = [bool(true[int(y), int(x)]) for ((x, y), _), true in pairs]
        return sum(good), sum(a and not b for a, b in zip(inside, good, strict=True))

    number = min(len(phrases), len(objects))
    tries = (
        value([(phrases[i], objects[j]) for i, j in zip(chosen, order, strict=True)])
        for chosen in permutations(range(len(phrases)), number)
        for order in permutations(range(len(objects)), number)
    )
    return max(tries)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def records():
    return [
        ("3", grounding(SIZES[3], [("star", IN_STAR, [STAR]), ("cat", NOWHERE, [ELSEWHERE])])),
        ("7", grounding(SIZES[7], [("cat", (10.5, 10.5), [MASKS[4][3]])])),
    ]


def test_shares_add_up_to_all_objects_crowds_left_out(dataset):
    oracle = {3: [0.9, 0.2, 0.6], 7: [0.4, 1.0], 12: [1.0], 30: [1.0], 20: []}
    ledger = keep_ledger(records(), dataset, matcher(), oracle=oracle)
    assert ledger.n_objects == 7 and ledger.crowds == 1
    table = ledger_table({"mine": ledger}).set_index("object")
    assert table.loc[list(BINS), "share"].sum() == pytest.approx(100)
    assert table.loc[list(BINS), "objects"].tolist() == [4, 0, 1, 0, 2]
    assert table.loc[list(BOUNDS), "objects"].tolist() == [1, 3]  # of star, cat, cat only the star's true point counts
    assert (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()
    assert "of 7 objects 28.6 % are counted" in reading("mine", ledger) and "'not said'" in reading("mine", ledger)


def test_differences_are_paired_and_nothing_differs_from_itself(dataset):
    whole, empty = (keep_ledger(each, dataset, matcher(), oracle={}) for each in (records(), []))
    same = ledger_differences({"a": whole, "b": whole})
    assert (same[["difference", "low", "high"]] == 0).all().all()
    other = ledger_differences({"a": empty, "b": whole}).set_index("object")
    assert other.loc["counted", "difference"] == pytest.approx(200 / 7)
    assert len(ledger_results(ledger_table({"a": whole}))) == len(BINS) + len(BOUNDS)


def test_first_and_later_mentions_are_told_apart(dataset):
    said = [("star", IN_STAR, [STAR]), ("star", NOWHERE, [STAR]), ("sun", NOWHERE, [STAR]), ("cat", IN_CAT, [CAT])]
    other = grounding(SIZES[7], [("cat", (10.5, 10.5), [MASKS[4][3]])])
    table = mention_table({"mine": [("3", grounding(SIZES[3], said)), ("7", other)]}, dataset, matcher())
    rows = table.set_index("phrases")
    assert rows["number"].to_dict() == {"first mention": 3, "later mentions": 2, "later minus first": 5}
    assert rows["PAcc"].to_dict() == {"first mention": 100, "later mentions": 0, "later minus first": -100}
    assert "mine: points of things that are named for the first time are right in 100.0" in mentions_reading(table)
    results = mention_results(table, {"mine": "hub/model"})
    assert [each.interval.value for each in results] == [100, 0] and results[0].model == "hub/model"


def test_the_inner_point_lies_deepest():
    mask = rectangle((40, 60), 10, 5, 51, 36)
    mask[:, 10:14] = False
    assert inner_point(mask) == (29.5, 20.5)
    assert inner_point(rectangle((9, 3), 0, 0, 3, 9)) == (1.5, 1.5)  # the image's border is an edge
    with pytest.raises(GroundingError, match="no inner point"):
        inner_point(np.zeros((3, 3), bool))


def test_oracle_overlaps_are_the_segmenters_own_and_kept(dataset, tmp_path, monkeypatch):
    run = Settings(output_dir=str(tmp_path), data="tiny.json")
    segmenter = tiny_sam.segmenter()
    found = oracle_overlaps(run, dataset, segmenter=segmenter, progress=False)
    assert {key: len(each) for key, each in found.items()} == {3: 3, 7: 2, 12: 1, 20: 0, 30: 1}
    import torch

    from core.images import load_image
    from core.masks import choose

    segmenter.set_image(load_image(dataset.image(7).path))
    points = torch.tensor([inner_point(MASKS[number][3]) for number in (4, 5)], dtype=torch.float32)
    masks = choose(segmenter.predict(points)).masks[:, 0].numpy()
    assert found[7] == pytest.approx([iou(mask, MASKS[number][3]) for mask, number in zip(masks, (4, 5), strict=True)])
    monkeypatch.setattr(segmenter, "set_image", None)
    assert oracle_overlaps(run, dataset, segmenter=segmenter, progress=False) == found


def test_the_bars_end_at_a_hundred(dataset):
    said = {"a": records(), "b": []}
    ledgers = {label: keep_ledger(each, dataset, matcher(), oracle={}) for label, each in said.items()}
    ax = plot_ledger(ledger_table(ledgers))
    ends = [max(bar.get_x() + bar.get_width() for bars in ax.containers for bar in (bars[row],)) for row in range(2)]
    assert ends == pytest.approx([100, 100])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    plt.close("all")
