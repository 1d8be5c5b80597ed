"""Single heads: laws of their maps, points of planted heads, the store, and PAcc per head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco
import tiny_groundings
import torch
from tiny_coco import MASKS, grounding, matcher

from analysis.heads.accuracy import head_accuracy, layer_table, reading
from analysis.heads.points import (
    HEAD_POINTS,
    choose_phrase,
    head_points,
    maps_reading,
    measure_head_points,
    measured_head_points,
    phrase_head_maps,
)
from analysis.scoring.coco import load_instances
from core.attention import aggregate, mean_over_heads, normalize
from core.errors import GroundingError
from core.phrases import Phrase, load_nlp
from core.pipeline import ground
from core.records import RunStore
from core.run import ground_dataset

LAYERS, HEADS = 2, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco"), images=True))


def grounded(answer, maps, **options):
    """The answer grounded again from these maps of every head, without a segmenter, with every head's points."""
    generation = replace(answer.generation, attention_per_head=maps, attention=mean_over_heads(maps))
    picture = np.zeros((*answer.image_size, 3), dtype=np.uint8)
    found = ground(generation, picture, segmenter=None, nlp=None, phrases=answer.phrases, **options)
    return replace(found, measured=measure_head_points(found))


def with_heads(answer, *, seed: int = 0, **options):
    """The answer grounded from random attention of every head."""
    t, k = answer.generation.attention.shape
    heads = torch.rand(t, LAYERS, HEADS, k, generator=torch.Generator().manual_seed(seed))
    return grounded(answer, heads, **options)


def planted(image_id: int, said, size, *, right: tuple[int, int], weight: float = 1.0):
    """A generation in which one head looks at the middle of each named object, and all others at a far corner."""
    answer = grounding(size, [(noun, (0.5, 0.5), [mask]) for noun, mask in said])
    view = answer.generation.views[0]
    t = len(answer.generation.token_ids)
    heads = torch.full((t, LAYERS, HEADS, view.index.numel()), 0.001)
    for number, (_, mask) in enumerate(said):
        rows, columns = np.nonzero(mask)
        row = int(rows.mean() * view.shape[0] / size[0])
        column = int(columns.mean() * view.shape[1] / size[1])
        heads[2 * number + 1, :, :, view.index[-1, -1]] = 0.3
        heads[2 * number + 1, *right, view.index[-1, -1]] = 0.001
        heads[2 * number + 1, *right, view.index[row, column]] = weight
    return str(image_id), grounded(answer, heads)


def test_the_mean_of_all_heads_maps_is_the_normalised_mean_map():
    generation = with_heads(grounding((40, 60), [("star", (1.5, 1.5), [])])).generation
    phrase = Phrase("a star", (0, 6), "a star", (0, 6), (1, 2))
    for kind in ("sequence", "none"):
        maps = phrase_head_maps(generation, phrase, normalization=kind)
        assert maps.shape == (LAYERS, HEADS, generation.attention.shape[1])
        expected = aggregate(normalize(generation.attention, kind), [1, 2])
        torch.testing.assert_close(maps.mean((0, 1)), expected, atol=1e-6, rtol=0)


def test_permuting_heads_permutes_maps_and_points_and_leaves_the_mean():
    before = with_heads(grounding((40, 60), [("star", (1.5, 1.5), [])]))
    order = [2, 0, 1]
    after = grounded(before, before.generation.attention_per_head[:, :, order])
    assert torch.equal(head_points(before)[:, :, order], head_points(after))
    torch.testing.assert_close(before.points, after.points)


def test_points_far_to_the_right_are_kept_whole():
    found = with_heads(grounding((4, 40_000), [("star", (1.5, 1.5), [])]))
    assert head_points(found)[..., 0].max() > 2**15
    assert torch.equal(measured_head_points(found), head_points(found))


@pytest.mark.parametrize("options", [{}, {"normalization": "none"}, {"token_offset": 1, "remove_corners": True}])
def test_each_head_is_the_pipeline_with_that_head_alone(options):
    """Parity with `core.pipeline.ground` on one selected head, every layer and head, landscape and portrait."""
    for size in ((40, 60), (70, 30)):
        answer = grounding(size, [("star", (1.5, 1.5), []), ("cat", (2.5, 2.5), [])])
        found = with_heads(answer, seed=size[0], **options)
        heads = found.generation.attention_per_head
        for layer in range(LAYERS):
            for head in range(HEADS):
                single = grounded(answer, heads, layers=[layer], heads=[head], **options)
                assert torch.equal(measured_head_points(found)[:, layer, head], single.points)
                assert torch.equal(single.measured[HEAD_POINTS], found.measured[HEAD_POINTS])


def test_without_per_head_attention_the_error_says_what_to_do(dataset):
    answer = grounding((80, 120), [("star", (1.5, 1.5), [])])
    with pytest.raises(GroundingError, match="call generate or replay with per_head=True"):
        phrase_head_maps(answer.generation, answer.phrases[0])
    with pytest.raises(GroundingError, match="holds no points of single heads; make the records with"):
        head_accuracy([("3", answer)], dataset, matcher())


def test_the_planted_head_is_right_and_the_others_are_not(dataset):
    stored = [
        planted(3, [("star", MASKS[1][3]), ("kitten", MASKS[2][3])], (80, 120), right=(1, 2)),
        planted(7, [("cat", MASKS[4][3])], (110, 60), right=(1, 2)),
    ]
    result = head_accuracy(stored, dataset, matcher())
    expected = np.zeros((LAYERS, HEADS))
    expected[1, 2] = 1.0
    assert np.array_equal(result.accuracy, expected)
    assert result.best == (1, 2)
    assert result.n_phrases == 3 and result.n_images == 5
    assert result.mean_accuracy.value == 0.0  # five corners outvote one object
    assert result.best_minus_mean.value == 1.0
    star, cat, crowd_cats = 2650 / 9600, 1000 / 9600, 3100 / 6600
    assert result.chance == pytest.approx((star + cat + crowd_cats) / 3)
    text = reading(result)
    assert "layer 1 head 2" in text and "3 matched phrases" in text


def test_a_strong_head_carries_the_mean(dataset):
    stored = [planted(3, [("star", MASKS[1][3])], (80, 120), right=(0, 0), weight=5.0)]
    assert head_accuracy(stored, dataset, matcher()).mean_accuracy.value == 1.0


def test_the_table_has_population_deviations(dataset):
    stored = [planted(3, [("star", MASKS[1][3])], (80, 120), right=(0, 1))]
    table = layer_table(head_accuracy(stored, dataset, matcher())).set_index("layer")
    assert table.loc["0", ["head 0", "head 1", "head 2"]].tolist() == [0.0, 100.0, 0.0]
    assert table.loc["0", "std"] == pytest.approx(np.std([0, 100, 0]))
    assert table.loc["1", "mean"] == 0.0
    assert table.loc["all", "mean"] == pytest.approx(100 / 6)
    assert table.loc["all", "std"] == pytest.approx(np.std([0, 100, 0, 0, 0, 0]))


def test_nothing_matched_is_nan_and_said_so(dataset):
    stored = [planted(3, [("rock", MASKS[1][3])], (80, 120), right=(0, 1))]
    result = head_accuracy(stored, dataset, matcher())
    assert np.isnan(result.accuracy).all() and result.accuracy.shape == (LAYERS, HEADS)
    assert result.n_phrases == 0
    assert reading(result).startswith("No phrase matched")


def test_no_points_or_points_of_two_models_are_refused(dataset):
    with pytest.raises(GroundingError, match=r"\(layers, heads\) \[\]"):
        head_accuracy([], dataset, matcher())
    one = planted(3, [("star", MASKS[1][3])], (80, 120), right=(0, 1))
    other = ("7", replace(grounding((110, 60), []), measured={HEAD_POINTS: torch.zeros(0, 4, 4, 2)}))
    with pytest.raises(GroundingError, match="one shape is needed"):
        head_accuracy([one, other], dataset, matcher())


def collect(items, directory, lmm, **config):
    parts = {"lmm": lmm, "segmenter": None, "nlp": load_nlp("embedded")}
    store = RunStore(directory, {"measured": HEAD_POINTS, **config}, keep_maps=False)
    options = {"measure": measure_head_points, "per_head": True, "max_new_tokens": 6, "progress": False}
    return store, ground_dataset(items, "Describe.", store=store, **parts, **options)


def test_collecting_is_resumable_and_equals_one_image_at_a_time(dataset, lmms, tmp_path):
    few = dataset.head(2)
    collect(few.items()[:1], tmp_path, lmms["llava"])
    (first,) = (tmp_path / "records").iterdir()
    before = first.stat().st_mtime_ns
    store, summary = collect(few.items(), tmp_path, lmms["llava"])
    assert (summary.skipped, summary.grounded, store.ids()) == (("3",), ("7",), ["3", "7"])
    assert first.stat().st_mtime_ns == before
    generation = lmms["llava"].generate(few.image(7).path, "Describe.", max_new_tokens=6, per_head=True)
    layers, heads = generation.attention_per_head.shape[1:3]
    back = store.read("7")
    assert measured_head_points(back).shape == (len(back.phrases), layers, heads, 2)
    assert torch.equal(measured_head_points(back), head_points(replace(back, generation=generation)))
    with pytest.raises(GroundingError, match="other settings: model absent then, 'b' now"):
        collect(few.items(), tmp_path, lmms["llava"], model="b")


def test_one_unreadable_image_of_three_is_an_error_record(dataset, lmms, tmp_path):
    items = dataset.head(3).items()
    broken = tmp_path / "broken.png"
    content = items[1][1].read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    items[1] = (items[1][0], broken)
    store, summary = collect(items, tmp_path / "run", lmms["llava"])
    assert summary.failed == (items[1][0],) and len(summary.grounded) == 2
    assert "broken.png" in store.errors()[items[1][0]]
    result = head_accuracy(dataset.records(store), dataset, matcher())
    assert result.n_images == 5


def test_maps_stay_off_the_disk(dataset, lmms, tmp_path):
    store, _ = collect(dataset.items()[:1], tmp_path, lmms["llava"])
    ((_, record),) = store
    assert record.generation.attention_per_head is None and record.generation.attention.shape[1] == 0
    assert head_accuracy(store, dataset, matcher()).accuracy.ndim == 2


def test_a_word_is_found_in_the_answer():
    nlp = load_nlp("embedded")
    generation = tiny_groundings.generation("There is a red star next to the blue rook.")
    assert choose_phrase(generation, nlp, word="Rook").tokens == (9,)
    assert choose_phrase(generation, nlp, word="next to").tokens == (5, 6)
    assert choose_phrase(generation, nlp).root == "star"
    assert choose_phrase(generation, nlp, categories=["Rook", "anchor"]).root == "rook"
    with pytest.raises(GroundingError, match="does not contain 'roo'"):
        choose_phrase(generation, nlp, word="roo")
    with pytest.raises(GroundingError, match="no noun to show"):
        choose_phrase(grounding((40, 60), []).generation, nlp)


def test_maps_are_read_in_words():
    maps = np.full((2, 2, 2, 2), 0.05)
    maps[1] = 0.1
    maps[1, 0] = [[0.97, 0.01], [0.01, 0.01]]
    text = maps_reading(maps)
    assert "layer 1 gives the image 70.0 %" in text and "layer 0 20.0 %" in text
    assert "layer 1 head 0 is the most focused, with 97 %" in text
