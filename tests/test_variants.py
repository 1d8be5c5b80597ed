"""Variants of a captured run: equal to a run of their own, resumable, kept apart, and without the model."""

from __future__ import annotations

import pytest
import torch

from analysis.captured import capture_run
from analysis.settings import Settings
from analysis.variants import ground_variant
from core import PRESETS, GroundOptions, load_lmm, load_nlp, load_segmenter
from core.errors import GroundingError
from core.pipeline import attend_and_segment

SHORT = {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def parts():
    return {
        "lmm": load_lmm("embedded", geometry="pad", device="cpu"),
        "segmenter": load_segmenter("embedded", device="cpu"),
        "nlp": load_nlp("embedded"),
    }


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """(settings, data set, store) of a run of two scenes of different sizes."""
    folder = tmp_path_factory.mktemp("variants")
    settings = Settings(output_dir=str(folder / "one"), runs_dir=str(folder / "runs"), n_images=2, generation=SHORT)
    dataset = settings.open_dataset()
    return settings, dataset, capture_run(settings, dataset, told=False, **parts)


def variant(run, parts, options, **changes):
    settings, dataset, store = run
    tools = {"segmenter": parts["segmenter"], "nlp": parts["nlp"], "name": "a variant", "progress": False}
    return ground_variant(settings, store, dataset, options, **tools | changes)


@pytest.mark.parametrize("preset", ["mask_prompt", "reference_v1_demo", "reference_v2_referring"])
def test_a_variant_equals_a_run_of_its_own(run, parts, preset):
    _, dataset, _ = run
    record_id, path = dataset.items()[1]
    own = attend_and_segment(path, "Describe the image in detail.", options=preset, **SHORT, **parts)
    found = variant(run, parts, preset).read(record_id)
    assert found.options == PRESETS[preset] and found.phrases == own.phrases and len(found.phrases) > 0
    torch.testing.assert_close(found.points, own.points, atol=1.0, rtol=0)  # float16 residuals may move it by a pixel
    torch.testing.assert_close(found.scores, own.scores, atol=0.02, rtol=0)
    assert [len(masks) for masks in found.masks] == [len(masks) for masks in own.masks]
    assert found.generation.attention.shape[1] == 0  # no maps are kept


def test_pronouns_are_phrases_of_their_own(run, parts):
    said = {id: {phrase.text for phrase in found.phrases} for id, found in variant(run, parts, "reference_v2")}
    usual = {id: {phrase.text for phrase in found.phrases} for id, found in run[2]}
    assert said.keys() == usual.keys() and all(said[id] >= usual[id] for id in said)


def test_a_second_time_nothing_is_computed_and_neither_is_the_runs_own(run, parts, monkeypatch):
    first = variant(run, parts, "no_normalization")
    monkeypatch.setattr(parts["segmenter"], "predict_in_parts", None)
    assert variant(run, parts, "no_normalization").directory == first.directory
    assert variant(run, parts, "paper") is run[2]
    assert variant(run, parts, GroundOptions(per_head=True)) is run[2]


def test_other_options_or_no_segmenter_get_a_folder_of_their_own(run, parts):
    points = variant(run, parts, "paper", segmenter=None)
    assert points.directory != run[2].directory
    for id, found in points:
        assert all(masks == () for masks in found.masks)
        torch.testing.assert_close(found.points, run[2].read(id).points, atol=1.0, rtol=0)
    others = {variant(run, parts, options, segmenter=None).directory for options in ("no_normalization", "mask_prompt")}
    assert len(others | {points.directory}) == 3


def test_what_the_run_does_not_hold_is_refused_at_once(run, parts):
    with pytest.raises(GroundingError, match="a run of its own"):
        variant(run, parts, "reference_v2_narrative")
    with pytest.raises(GroundingError, match="make a run with these options"):
        variant(run, parts, GroundOptions(layers=(0,), heads=(1,)))


def test_an_image_that_cannot_be_grounded_so_is_an_error_and_the_others_go_on(run, parts, tmp_path):
    settings, dataset, store = run

    class Moved:
        def items(self):
            first, second = dataset.items()
            return [(first[0], tmp_path / "gone.png"), second, ("never answered", first[1])]

    tools = {"segmenter": None, "nlp": parts["nlp"], "name": "moved", "progress": False}
    found = ground_variant(settings, store, Moved(), GroundOptions(remove_corners=True), **tools)
    assert found.ids() == [dataset.items()[1][0]]
    assert "gone.png" in found.errors()[dataset.items()[0][0]] and len(found.errors()) == 1
