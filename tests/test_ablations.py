"""Tables 4 and 7: rows of one run; heads' masks are the segmenter's own; numbers against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_gcg
import torch

from analysis.ablations.heads import head_recall, reading, recall_results, recall_table
from analysis.ablations.variants import NORM_POINT, VARIANTS, paper_variants, variant_results, variant_table
from analysis.captured import capture_run
from analysis.gcg.grandf import load_gcg
from analysis.gcg.predictions import open_predictions
from analysis.gcg.scores import score_predictions
from analysis.gcg.settings import GcgSettings
from analysis.heads.masks import choose_heads, groundings_of_heads, segment_heads
from analysis.heads.points import measured_head_points
from core import load_image, load_lmm, load_nlp, load_segmenter
from core.errors import GroundingError
from core.masks import choose
from core.rle import decode_rle


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores of three unlike predictions of one tiny set."""
    found = []
    folder = tiny_gcg.write(tmp_path_factory.mktemp("gcg") / "set", seed=0, n=40)
    dataset = load_gcg(folder)
    for seed in range(3):
        other = tiny_gcg.write(tmp_path_factory.mktemp("gcg") / "set", seed=seed, n=40)
        found.append(
            score_predictions(open_predictions(other / "predictions", dataset), tiny_gcg.Vectors(), captions=False)
        )
    return found


def test_the_papers_heads_are_every_eighth_of_32():
    assert choose_heads((32, 32)).layers == (0, 8, 16, 24) == choose_heads((32, 32)).heads
    assert choose_heads((4, 4)).names[:5] == [*(f"layer 0 head {head}" for head in range(4)), "layer 1 head 0"]
    assert choose_heads((2, 3)).layers == (0, 1) and choose_heads((2, 3)).heads == (0, 1, 2)
    assert len(choose_heads((6, 8), {"layers": [5], "heads": "all"})) == 8


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"layer": [0]}, "heads has no layer"),
        ({"layers": [4]}, r"layers \[4\] are not among this model's 0 to 3"),
        ({"heads": "some"}, "heads is 'some'; give a list"),
        ({"heads": []}, r"heads is \[\]; give a list"),
    ],
)
def test_heads_that_are_not_there_are_refused(chosen, message):
    with pytest.raises(GroundingError, match=message):
        choose_heads((4, 4), chosen)


def test_table_4_names_the_papers_rows_and_pairs_the_differences(scored):
    scores = dict(zip(VARIANTS, [*scored, scored[0]], strict=True))
    table = variant_table(scores).set_index("variant")
    assert list(table.index) == list(VARIANTS)
    same = table.loc[NORM_POINT]
    assert same[f"mIoU minus {NORM_POINT}"] == 0 and same[f"recall minus {NORM_POINT}_high"] == 0
    other = table.loc["norm + mask prompt"]
    assert other[f"recall minus {NORM_POINT}"] == pytest.approx(other["recall"] - same["recall"])
    assert paper_variants().set_index("variant")["recall"].to_dict() == {
        "norm + mask prompt": 36.5,
        "no norm + point": 44.1,
        "norm + point": 46.6,
    }
    found = variant_results(table.reset_index())
    assert [each.paper for each in found if each.method.endswith("stretched")] == [None, None]
    assert [each.paper for each in found if each.method == NORM_POINT] == [61.2, 46.6]


def test_table_7_equals_a_plain_loop(scored):
    choice = choose_heads((2, 2))
    single = [scored[number] for number in (0, 1, 2, 1)]
    result = head_recall(choice, single, scored[2], n_heads=4)
    recalls = [each.counts["matched"].sum() / each.counts["true"].sum() for each in single]
    np.testing.assert_allclose(result.recall.ravel(), recalls)
    assert result.overall.value == pytest.approx(np.mean(recalls)) and result.deviation.value == pytest.approx(
        np.std(recalls)
    )
    assert result.mean_minus_single.value == pytest.approx(recalls[2] - np.mean(recalls))
    assert result.overall.low < result.overall.value < result.overall.high
    table = recall_table(result)
    assert table["layer"].tolist() == ["0", "1", "all 4", "mean map of all 4 heads", "mean map minus single heads"]
    assert table.loc[0, "std"] == pytest.approx(100 * np.std(recalls[:2]))
    assert [each.paper for each in recall_results(result)] == [18.4, 8.8, 46.6, 28.2]
    assert "single heads" in reading(result)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A captured run of two scenes with its settings, data and segmenter."""
    folder = tmp_path_factory.mktemp("heads")
    settings = GcgSettings(output_dir=str(folder), n_images=2, generation={"max_new_tokens": 24})
    dataset = settings.open_dataset()
    parts = {"segmenter": load_segmenter("embedded", device="cpu"), "nlp": load_nlp("embedded")}
    store = capture_run(settings, dataset, lmm=load_lmm("embedded", geometry="pad", device="cpu"), **parts)
    return settings, dataset, store, parts["segmenter"]


def test_masks_of_heads_are_the_segmenters_at_their_points(run, monkeypatch):
    settings, dataset, store, segmenter = run
    choice = choose_heads((4, 4), {"layers": [1, 3], "heads": [2, 0]})
    masks = segment_heads(settings, store, dataset, choice, segmenter=segmenter, progress=False)
    for number, (layer, head) in enumerate([(1, 2), (1, 0), (3, 2), (3, 0)]):
        assert choice.names[number] == f"layer {layer} head {head}"
        for id, groundings in groundings_of_heads(store, masks, dataset):
            grounding = groundings[number]
            points = measured_head_points(store.read(id))[:, layer, head]
            segmenter.set_image(load_image(dataset.image(id).path))
            expected = choose(segmenter.predict(points)).masks[:, 0]
            found = torch.stack([decode_rle(each[0]) for each in grounding.masks])
            assert torch.equal(found, expected) and len(found) == len(grounding.phrases) > 0
    monkeypatch.setattr(segmenter, "set_image", None)
    again = segment_heads(settings, store, dataset, choice, segmenter=segmenter, progress=False)
    assert again.directory == masks.directory
