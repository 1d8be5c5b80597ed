"""Variants of a captured run: equal to a run of their own, resumable, kept apart, and without the model."""

from __future__ import annotations

import pytest
import torch

from analysis.variants import ground_variant
from core import PRESETS, GroundOptions
from core.errors import GroundingError
from core.pipeline import attend_and_segment

SHORT = {"max_new_tokens": 24}


def variant(captured, embedded_parts, options, **changes):
    settings, dataset, store = captured
    tools = {
        "segmenter": embedded_parts["segmenter"],
        "nlp": embedded_parts["nlp"],
        "name": "a variant",
        "progress": False,
    }
    return ground_variant(settings, store, dataset, options, **tools | changes)


@pytest.mark.parametrize("preset", ["mask_prompt", "reference_v1_demo", "reference_v2_referring"])
def test_a_variant_equals_a_run_of_its_own(captured, embedded_parts, preset):
    _, dataset, _ = captured
    record_id, path = dataset.items()[1]
    own = attend_and_segment(path, "Describe the image in detail.", options=preset, **SHORT, **embedded_parts)
    found = variant(captured, embedded_parts, preset).read(record_id)
    assert found.options == PRESETS[preset] and found.phrases == own.phrases and len(found.phrases) > 0
    torch.testing.assert_close(found.points, own.points, atol=1.0, rtol=0)  # float16 residuals may move it by a pixel
    torch.testing.assert_close(found.scores, own.scores, atol=0.02, rtol=0)
    assert [len(masks) for masks in found.masks] == [len(masks) for masks in own.masks]
    assert found.generation.attention.shape[1] == 0  # no maps are kept


def test_pronouns_are_phrases_of_their_own(captured, embedded_parts):
    said = {
        id: {phrase.text for phrase in found.phrases} for id, found in variant(captured, embedded_parts, "reference_v2")
    }
    usual = {id: {phrase.text for phrase in found.phrases} for id, found in captured[2]}
    assert said.keys() == usual.keys() and all(said[id] >= usual[id] for id in said)


def test_a_second_time_nothing_is_computed_and_neither_is_the_runs_own(captured, embedded_parts, monkeypatch):
    first = variant(captured, embedded_parts, "no_normalization")
    monkeypatch.setattr(embedded_parts["segmenter"], "predict_in_parts", None)
    assert variant(captured, embedded_parts, "no_normalization").directory == first.directory
    assert variant(captured, embedded_parts, "paper") is captured[2]
    assert variant(captured, embedded_parts, GroundOptions(per_head=True)) is captured[2]


def test_other_options_or_no_segmenter_get_a_folder_of_their_own(captured, embedded_parts):
    points = variant(captured, embedded_parts, "paper", segmenter=None)
    assert points.directory != captured[2].directory
    for id, found in points:
        assert all(masks == () for masks in found.masks)
        torch.testing.assert_close(found.points, captured[2].read(id).points, atol=1.0, rtol=0)
    others = {
        variant(captured, embedded_parts, options, segmenter=None).directory
        for options in ("no_normalization", "mask_prompt")
    }
    assert len(others | {points.directory}) == 3


def test_what_the_run_does_not_hold_is_refused_at_once(captured, embedded_parts):
    with pytest.raises(GroundingError, match="a run of its own"):
        variant(captured, embedded_parts, "reference_v2_narrative")
    with pytest.raises(GroundingError, match="make a run with these options"):
        variant(captured, embedded_parts, GroundOptions(layers=(0,), heads=(1,)))


def test_an_image_that_cannot_be_grounded_so_is_an_error_and_the_others_go_on(captured, embedded_parts, tmp_path):
    settings, dataset, store = captured

    class Moved:
        def items(self):
            first, second = dataset.items()
            return [(first[0], tmp_path / "gone.png"), second, ("never answered", first[1])]

    tools = {"segmenter": None, "nlp": embedded_parts["nlp"], "name": "moved", "progress": False}
    found = ground_variant(settings, store, Moved(), GroundOptions(remove_corners=True), **tools)
    assert found.ids() == [dataset.items()[1][0]]
    assert "gone.png" in found.errors()[dataset.items()[0][0]] and len(found.errors()) == 1
