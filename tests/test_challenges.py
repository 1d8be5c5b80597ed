"""Four challenges: what is drawn, what is read from a list, and what is counted."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import tiny_coco
from matplotlib import pyplot as plt
from PIL import Image
from tiny_coco import MASKS, SIZES, grounding, matcher

from analysis.challenges.data import load_challenges, open_challenges, read_answers, shown_items
from analysis.challenges.figures import ShownChallenge, plot_challenge_scores, plot_challenges
from analysis.challenges.scores import (
    DENIALS,
    challenge_results,
    description_table,
    named_categories,
    question_reading,
    question_table,
    shift_differences,
)
from analysis.conversation.objects import drawn_answer
from analysis.settings import Settings
from core.errors import GroundingError
from embedded.scenes.challenges import KINDS, UNSEEN_COLOURS, UNSEEN_GLYPHS, make_challenge, paint, unseen_silhouette
from embedded.scenes.glyphs import CATEGORIES, silhouette
from embedded.scenes.scenes import make_scene

STAR, CAT = MASKS[1][3], MASKS[2][3]
IN_STAR, NOWHERE = (30.5, 40.5), (5.5, 75.5)


# ---- scenes


@pytest.mark.parametrize("kind", KINDS)
def test_a_challenge_is_the_same_again_and_its_masks_are_of_its_picture(kind):
    one, two = make_challenge(kind, 3), make_challenge(kind, 3)
    assert one.scene.image == two.scene.image and one.question == two.question
    height, width = one.scene.image.height, one.scene.image.width
    assert all(each.mask.shape == (height, width) and each.mask.any() for each in one.scene.objects)
    assert make_challenge(kind, 4).scene.image != one.scene.image


def test_unusual_scenes_pile_things_up_in_colours_without_a_name():
    covered = []
    for index in range(6):
        things = make_challenge("unusual", index).scene.objects
        assert things[-1].colour in UNSEEN_COLOURS and len({each.category for each in things}) == len(things)
        boxes = [each.box for each in things]
        covered.append(any(overlap(a, b) for a, b in pairwise(boxes)))
    assert sum(covered) >= 5


def overlap(a, b) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def test_rare_things_have_other_ink_than_training_drew():
    assert set(UNSEEN_GLYPHS) < set(CATEGORIES)
    for category in UNSEEN_GLYPHS:
        shapes = (silhouette(category), unseen_silhouette(category))
        usual, other = (np.asarray(shape.ink.resize((64, 64)), float) for shape in shapes)
        assert np.abs(usual - other).mean() > 10
    assert unseen_silhouette("anchor") == silhouette("anchor")


def test_a_painting_keeps_the_scene_and_changes_the_picture():
    scene, shifted = make_scene("val", 2), make_challenge("shifted", 2)
    assert shifted.scene.objects[0].mask.sum() == scene.objects[0].mask.sum()
    assert shifted.scene.image.size == scene.image.size
    difference = np.abs(np.asarray(scene.image, float) - np.asarray(shifted.scene.image, float)).mean()
    assert 8 < difference < 80
    assert paint(scene.image, seed=1) == paint(scene.image, seed=1)


@pytest.mark.parametrize("index", range(5))
def test_what_is_absent_is_not_there_and_what_is_present_is(index):
    for kind, there in (("absent", False), ("present", True)):
        made = make_challenge(kind, index)
        assert (made.asked in {each.category for each in made.scene.objects}) == there
        assert made.question == f"What color is the {made.asked}?"


def test_an_unknown_challenge_is_refused():
    with pytest.raises(GroundingError, match="no challenge is called 'hard'"):
        make_challenge("hard", 0)


# ---- lists


def test_the_embedded_list_is_read_with_its_truth(tmp_path):
    challenges = open_challenges(Settings(output_dir=str(tmp_path), n_images=1))
    assert challenges.kinds == KINDS and len(challenges.items) == 6
    assert [len(challenges.truth_of(kind)) for kind in KINDS] == [1] * 6
    assert challenges.of("absent")[0].path == challenges.of("ordinary")[0].path
    shown = shown_items(challenges, [item.id for item in challenges.items])
    assert [item.kind for item in shown] == ["unusual", "absent", "rare", "shifted"]


def written(tmp_path, items, *, truth: bool = False):
    if truth:
        tiny_coco.write(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "list.yaml").write_text(json.dumps(items))
    return tmp_path / "list.yaml"


ITEM = {"image": "a.png", "challenge": "painting", "question": "What is this?"}


def test_a_list_of_ones_own_needs_no_truth(tmp_path):
    challenges = load_challenges(written(tmp_path, [ITEM, ITEM | {"id": "x", "note": "by hand"}]))
    assert [item.id for item in challenges.items] == ["0", "x"] and challenges.truth is None
    assert challenges.items[1].note == "by hand" and challenges.items[0].title == "painting"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "must hold a list"),
        ([], "must hold a list"),
        (["a.png"], "item 0 of .* is 'a.png'"),
        ([{"image": "a.png", "question": "?"}], "item 0 of .* lacks challenge"),
        ([ITEM | {"imgae": "b"}], "has the unknown imgae"),
        ([ITEM | {"image": "b.png"}], r"there is no picture .*b\.png"),
        ([ITEM | {"id": 1}, ITEM | {"id": 1}], "the ids 1 more than once"),
    ],
)
def test_lists_that_cannot_be_used_say_why(tmp_path, items, message):
    with pytest.raises(GroundingError, match=message):
        load_challenges(written(tmp_path, items))


def test_other_systems_answers_belong_to_the_list(tmp_path):
    challenges = load_challenges(written(tmp_path, [ITEM]))
    (tmp_path / "other.json").write_text('{"0": "A painting."}')
    assert read_answers({"them": tmp_path / "other.json"}, challenges) == {"them": {"0": "A painting."}}
    (tmp_path / "other.json").write_text('{"7": "A painting."}')
    with pytest.raises(GroundingError, match="has the ids 7, which no item has"):
        read_answers({"them": tmp_path / "other.json"}, challenges)
    with pytest.raises(GroundingError, match="cannot be read"):
        read_answers({"them": tmp_path / "absent.json"}, challenges)


# ---- numbers by hand


@pytest.fixture
def challenges(tmp_path):
    """Image 3 (stars, a cat) as an ordinary scene, 7 as its shifted twin, 12 and 30 asked about."""
    kinds = {3: "ordinary", 7: "shifted", 12: "absent", 30: "present"}
    items = [ITEM | {"id": key, "challenge": kind, "asked": "star"} for key, kind in kinds.items()]
    return load_challenges(written(tmp_path, items, truth=True))


def records():
    return {
        "3": grounding(SIZES[3], [("star", IN_STAR, [STAR]), ("cat", NOWHERE, [CAT])]),
        "7": grounding(SIZES[7], [("cat", (10.5, 10.5), [MASKS[4][3]]), ("star", (1.5, 1.5), [MASKS[4][3]])]),
        "12": grounding(SIZES[12], [("star", (1.5, 1.5), [MASKS[7][3]])]),
        "30": grounding(SIZES[30], [("yellow star", (1.5, 1.5), [MASKS[8][3]])]),
    }


def test_descriptions_are_counted_by_hand(challenges):
    table = description_table(challenges, records(), matcher()).set_index("challenge")
    assert table.loc["ordinary scenes", ["PAcc", "precision", "recall"]].tolist() == [50, 100, 100]
    assert table.loc["shifted domain", ["PAcc", "precision", "recall"]].tolist() == [100, 50, 50]
    right, said, there = named_categories([("3", records()["3"])], challenges.truth_of("ordinary"))
    assert (right.tolist(), said.tolist(), there.tolist()) == ([2], [2], [2])
    shift = shift_differences(challenges, records(), matcher()).set_index("quantity")
    assert shift["difference"].to_dict() == {"PAcc": 50, "precision": -50, "recall": -50}


def test_questions_are_counted_by_hand(challenges):
    found = records()
    table = question_table(challenges, found, ["yellow", "green"]).set_index("question about")
    assert table.loc["something absent", ["denied", "coloured"]].tolist() == [0, 0]
    assert table.loc["something present", ["coloured", "right"]].tolist() == [100, 100]
    mass = float(found["30"].generation.attention[1].sum())
    assert 0 < table.loc["something present", "image mass"] <= 100 * max(mass, 1)
    assert "invents" not in question_reading(table.reset_index())
    results = challenge_results(description_table(challenges, found, matcher()), table.reset_index(), "four")
    assert results[0].figure == "four" and {each.item for each in results} == {"Figure 4"}


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        ("There is no star.", True),
        ("It isn't there", True),
        ("The star is yellow.", False),
        ("nose note", False),
        ("NONE", True),
    ],
)
def test_denials_are_whole_words(text, denies):
    assert bool(DENIALS.search(text)) == denies


# ---- pictures


def test_every_row_of_the_figure_has_picture_and_answer_and_nothing_overlaps():
    answer = drawn_answer(grounding(SIZES[3], [("star", IN_STAR, [STAR])] * 12))
    picture = Image.new("RGB", SIZES[3][::-1])
    others = (("Another", "It shows a star of some kind. " * 4),)
    rows = [
        ShownChallenge("rare concepts", "Describe the image in detail.", picture, answer, others, "a note"),
        ShownChallenge("shifted domain", "Describe.", picture, answer),
    ]
    figure = plot_challenges(rows, "ours")
    figure.canvas.draw()
    assert len(figure.axes) == 5 and figure.axes[0].get_title(loc="left") == "rare concepts"
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[n + 1 :])
    plt.close(figure)


def test_the_scores_are_drawn_with_their_intervals(challenges):
    ax = plot_challenge_scores(description_table(challenges, records(), matcher()))
    dots = {line.get_label(): line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"}
    assert dots["ordinary scenes"] == 50 and dots["shifted domain"] == 100
    plt.close("all")
