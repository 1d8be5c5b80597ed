"""Single heads: laws of their maps, points of planted heads, the store, and PAcc per head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco
import tiny_groundings
import torch
from tiny_coco import MASKS, grounding, vectors_nlp

from analysis.heads.accuracy import head_accuracy, layer_table, reading
from analysis.heads.points import (
    HeadPoints,
    HeadStore,
    choose_phrase,
    collect_head_points,
    head_points,
    maps_reading,
    phrase_head_maps,
)
from analysis.scoring.coco import load_instances
from core.attention import aggregate, mean_over_heads, normalize
from core.errors import GroundingError
from core.phrases import load_nlp

LAYERS, HEADS = 2, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco"), images=True))


def with_heads(answer, *, seed: int = 0):
    """The answer's generation with random attention of every head."""
    t, k = answer.generation.attention.shape
    heads = torch.rand(t, LAYERS, HEADS, k, generator=torch.Generator().manual_seed(seed))
    return replace(answer.generation, attention_per_head=heads, attention=mean_over_heads(heads))


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
    generation = replace(answer.generation, attention_per_head=heads, attention=mean_over_heads(heads))
    return str(image_id), head_points(generation, answer.phrases, view)


def test_the_mean_of_all_heads_maps_is_the_normalised_mean_map():
    answer = grounding((40, 60), [("star", (1.5, 1.5), [tiny_coco.rectangle((40, 60), 0, 0, 9, 9)])])
    generation = with_heads(answer)
    tokens = [1, 2]
    for kind in ("sequence", "none"):
        maps = phrase_head_maps(generation, tokens, normalization=kind)
        assert maps.shape == (LAYERS, HEADS, generation.attention.shape[1])
        expected = aggregate(normalize(generation.attention, kind), tokens)
        torch.testing.assert_close(maps.mean((0, 1)), expected, atol=1e-6, rtol=0)


def test_permuting_heads_permutes_maps_and_points_and_leaves_the_mean():
    answer = grounding((40, 60), [("star", (1.5, 1.5), [tiny_coco.rectangle((40, 60), 0, 0, 9, 9)])])
    generation = with_heads(answer)
    order = [2, 0, 1]
    mixed = replace(generation, attention_per_head=generation.attention_per_head[:, :, order])
    view = generation.views[0]
    before, after = head_points(generation, answer.phrases, view), head_points(mixed, answer.phrases, view)
    assert np.array_equal(before.points[:, :, order], after.points)
    np.testing.assert_allclose(before.mean_points, after.mean_points)


def test_each_head_is_the_pipeline_with_that_head_alone():
    """Parity with `core.pipeline.ground` on one selected head, every layer and head, landscape and portrait."""
    from core.pipeline import ground

    for size in ((40, 60), (70, 30)):
        answer = grounding(size, [("star", (1.5, 1.5), []), ("cat", (2.5, 2.5), [])])
        generation = with_heads(answer, seed=size[0])
        found = head_points(generation, answer.phrases, generation.views[0])
        picture = np.zeros((*size, 3), dtype=np.uint8)
        for layer in range(LAYERS):
            for head in range(HEADS):
                options = {"segmenter": None, "nlp": None, "phrases": answer.phrases}
                single = ground(generation, picture, layers=[layer], heads=[head], **options)
                assert np.array_equal(found.points[:, layer, head], single.points.numpy())
        everything = ground(generation, picture, segmenter=None, nlp=None, phrases=answer.phrases)
        assert np.array_equal(found.mean_points, everything.points.numpy())


def test_without_per_head_attention_the_error_says_what_to_do():
    answer = grounding((40, 60), [("star", (1.5, 1.5), [])])
    with pytest.raises(GroundingError, match="call generate or replay with per_head=True"):
        phrase_head_maps(answer.generation, [1])


def test_the_planted_head_is_right_and_the_others_are_not(dataset):
    stored = [
        planted(3, [("star", MASKS[1][3]), ("kitten", MASKS[2][3])], (80, 120), right=(1, 2)),
        planted(7, [("cat", MASKS[4][3])], (110, 60), right=(1, 2)),
    ]
    result = head_accuracy(stored, dataset, vectors_nlp())
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
    assert head_accuracy(stored, dataset, vectors_nlp()).mean_accuracy.value == 1.0


def test_the_table_has_population_deviations(dataset):
    stored = [planted(3, [("star", MASKS[1][3])], (80, 120), right=(0, 1))]
    table = layer_table(head_accuracy(stored, dataset, vectors_nlp())).set_index("layer")
    assert table.loc["0", ["head 0", "head 1", "head 2"]].tolist() == [0.0, 100.0, 0.0]
    assert table.loc["0", "std"] == pytest.approx(np.std([0, 100, 0]))
    assert table.loc["1", "mean"] == 0.0
    assert table.loc["all", "mean"] == pytest.approx(100 / 6)
    assert table.loc["all", "std"] == pytest.approx(np.std([0, 100, 0, 0, 0, 0]))


def test_nothing_matched_is_nan_and_said_so(dataset):
    stored = [planted(3, [("rock", MASKS[1][3])], (80, 120), right=(0, 1))]
    result = head_accuracy(stored, dataset, vectors_nlp())
    assert np.isnan(result.accuracy).all() and result.accuracy.shape == (LAYERS, HEADS)
    assert result.n_phrases == 0
    assert reading(result).startswith("No phrase matched")


def test_no_points_or_points_of_two_models_are_refused(dataset):
    with pytest.raises(GroundingError, match=r"\(layers, heads\) \[\]"):
        head_accuracy([], dataset, vectors_nlp())
    one = planted(3, [("star", MASKS[1][3])], (80, 120), right=(0, 1))
    other = ("7", HeadPoints((), np.zeros((0, 4, 4, 2), np.float32), np.zeros((0, 2), np.float32)))
    with pytest.raises(GroundingError, match="one shape is needed"):
        head_accuracy([one, other], dataset, vectors_nlp())


def test_the_store_returns_what_it_was_given_and_refuses_other_settings(tmp_path):
    store = HeadStore(tmp_path / "heads", {"model": "a"})
    _, points = planted(3, [("star", MASKS[1][3]), ("cat", MASKS[2][3])], (80, 120), right=(0, 1))
    store.write("a/b.png", points)
    again = HeadStore(tmp_path / "heads", {"model": "a"})
    assert again.ids() == ["a/b.png"]
    back = again.read("a/b.png")
    assert back.phrases == points.phrases
    assert np.array_equal(back.points, points.points) and np.array_equal(back.mean_points, points.mean_points)
    with pytest.raises(GroundingError, match="choose another output_dir"):
        HeadStore(tmp_path / "heads", {"model": "b"})
    with pytest.raises(GroundingError, match="no points of image 'c'"):
        again.read("c")


def test_collecting_is_resumable_and_equals_one_image_at_a_time(dataset, lmms, tmp_path):
    nlp = load_nlp("embedded")
    few = dataset.head(2)
    options = {"lmm": lmms["llava"], "nlp": nlp, "max_new_tokens": 6, "progress": False}
    store = collect_head_points(few.items()[:1], "Describe.", store=HeadStore(tmp_path / "run", {}), **options)
    first = (store.directory / "3.npz").stat().st_mtime_ns
    collect_head_points(few.items(), "Describe.", store=store, **options)
    assert store.ids() == ["3", "7"]
    assert (store.directory / "3.npz").stat().st_mtime_ns == first
    generation = lmms["llava"].generate(few.image(7).path, "Describe.", max_new_tokens=6, per_head=True)
    layers, heads = generation.attention_per_head.shape[1:3]
    back = store.read("7")
    assert back.points.shape == (len(back.phrases), layers, heads, 2)
    expected = head_points(generation, back.phrases, generation.views[-1])
    assert np.array_equal(back.points, expected.points)


def test_an_unreadable_image_is_told_and_the_rest_goes_on(lmms, pictures, tmp_path, capsys):
    for name in ("a", "config"):  # ids that are names of the store's own files, too
        pictures["small"].save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    items = [(name, tmp_path / f"{name}.png") for name in ("a", "broken", "config")]
    options = {"lmm": lmms["llava"], "nlp": load_nlp("embedded"), "max_new_tokens": 4, "progress": False}
    store = collect_head_points(items, "Describe.", store=HeadStore(tmp_path / "run", {"kept": 1}), **options)
    assert store.ids() == ["a", "config"]
    assert list(store.errors()) == ["broken"]
    assert "broken.png" in store.errors()["broken"]
    assert "1 of 3 images" in capsys.readouterr().out
    with pytest.raises(GroundingError, match=r"no points of image 'broken'.*broken\.png"):
        store.read("broken")
    reopened = HeadStore(tmp_path / "run", {"kept": 1})
    items[1] = ("broken", tmp_path / "a.png")
    assert collect_head_points(items, "Describe.", store=reopened, **options).ids() == ["a", "config"]  # as recorded
    reopened.write("broken", reopened.read("a"))
    assert reopened.errors() == {}


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
