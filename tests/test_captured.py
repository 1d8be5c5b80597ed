"""One run for all questions: computed once, and what is asked later equals a run of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from tiny_sam import random_sam

from analysis.captured import capture_run, describe_ties, recorded_generation
from analysis.heads.points import measured_head_points
from analysis.heads.statistics import HEAD_MAPS, STATISTICS
from analysis.settings import Settings
from core import PRESETS, GroundOptions, load_image, load_segmenter
from core.embeddings import keep_embeddings
from core.errors import GroundingError
from core.masks import Segmenter
from core.pipeline import attend_and_segment, ground, phrase_points, token_maps
from core.points import prompt_points
from core.run import RunSummary

SHORT = {"max_new_tokens": 24}


def some_image(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_kept_embedding_is_segment_anythings_own_and_gives_its_masks(tmp_path, monkeypatch):
    image, points = some_image(0, (60, 110)), torch.tensor([[20.5, 30.5], [90.5, 10.5]])
    first = Segmenter(random_sam(), name="tiny")
    keep_embeddings(first, tmp_path)
    first.set_image(image)
    expected = first.predict(points)
    later = Segmenter(random_sam(), name="tiny")
    keep_embeddings(later, tmp_path)
    monkeypatch.setattr(later.backend, "encode", None)  # encoding again would fail
    later.set_image(image)
    found = later.predict(points)
    assert torch.equal(found.masks, expected.masks) and torch.equal(found.scores, expected.scores)
    reference = SamPredictor(random_sam())
    reference.set_image(image)
    assert torch.equal(later.embedding["embedding"], reference.features)
    assert later.backend.input_size(later.image_size) == tuple(reference.input_size)


def test_another_image_or_another_model_never_gets_a_kept_embedding(tmp_path):
    segmenter = Segmenter(random_sam(), name="tiny")
    keep_embeddings(segmenter, tmp_path)
    kept = []
    for image in (some_image(0, (40, 40)), some_image(1, (40, 40)), some_image(0, (80, 20))):
        segmenter.set_image(image)
        kept.append(segmenter.embedding["embedding"])
    assert not any(torch.equal(a, b) for a, b in ((kept[0], kept[1]), (kept[0], kept[2])))
    with pytest.raises(GroundingError, match="segmenter"):
        keep_embeddings(load_segmenter("embedded", device="cpu"), tmp_path)


def test_a_second_notebook_finds_everything_done(captured, embedded_parts, monkeypatch):
    settings, dataset, store = captured
    monkeypatch.setattr(embedded_parts["lmm"], "generate", None)
    again = Settings(
        output_dir=settings.output_dir + "/another", runs_dir=settings.runs_dir, n_images=2, generation=SHORT
    )
    assert capture_run(again, dataset, **embedded_parts).directory == store.directory


def test_other_options_get_a_folder_of_their_own(captured, embedded_parts):
    settings, _, store = captured
    other = Settings(
        output_dir=settings.output_dir,
        runs_dir=settings.runs_dir,
        n_images=1,
        generation=SHORT,
        options={"per_head": False},
    )
    slim = capture_run(other, other.open_dataset(), **embedded_parts)
    assert slim.directory != store.directory
    assert set(slim.read("0").measured) == set() < set(store.read("0").measured)
    with pytest.raises(GroundingError, match="per_head"):
        recorded_generation(slim.read("0"), PRESETS["reference_v1"])


@pytest.mark.parametrize("preset", ["paper", "no_normalization", "mask_prompt", "reference_v1", "reference_v2"])
def test_what_follows_from_a_record_equals_a_run_of_its_own(captured, embedded_parts, preset):
    _, dataset, store = captured
    record_id, path = dataset.items()[1]
    options = PRESETS[preset]
    own = attend_and_segment(path, "Describe the image in detail.", options=options, **SHORT, **embedded_parts)
    kept = recorded_generation(store.read(record_id), options)
    maps = GroundOptions(**options.as_dict() | {"layers": None, "heads": None})
    found = ground(
        kept, load_image(path), segmenter=embedded_parts["segmenter"], nlp=embedded_parts["nlp"], options=maps
    )
    assert found.phrases == own.phrases and len(own.phrases) > 0
    scale = token_maps(own.generation, options=options).abs().max()
    torch.testing.assert_close(
        token_maps(kept, options=maps), token_maps(own.generation, options=options), atol=float(scale) / 500, rtol=0
    )
    torch.testing.assert_close(found.points, own.points, atol=1.0, rtol=0)  # float16 residuals may move it by a pixel


def test_the_points_of_every_head_are_kept(captured):
    _, _, store = captured
    grounding = store.read("0")
    points = measured_head_points(grounding)
    assert points.shape == (len(grounding.phrases), 4, 4, 2)
    mean = phrase_points(grounding.generation, grounding.phrases)
    assert (points != mean[:, None, None]).any()


def test_what_is_known_of_single_heads_is_kept_and_their_maps_where_they_are_small(captured, embedded_parts):
    settings, dataset, store = captured
    kept = store.read("0")
    points = prompt_points(kept.measured[HEAD_MAPS].flatten(0, 2), kept.view, kept.image_size)
    assert torch.equal(points.reshape(len(kept.phrases), 4, 4, 2), measured_head_points(kept))
    assert all(kept.measured[name].shape == (len(kept.phrases), 4, 4) for name in STATISTICS)
    few = capture_run(
        settings, dataset.head(1), head_maps=100, told=False, **embedded_parts
    )  # 16 heads of 100 cells are more
    assert few.directory != store.directory
    assert set(store.read("0").measured) - set(few.read("0").measured) == {HEAD_MAPS}


def test_maps_normalised_by_the_prompts_are_of_no_single_head(captured, embedded_parts):
    settings, dataset, _ = captured
    prompted = replace(settings, options={"normalization": "prompt"})
    record = capture_run(prompted, dataset.head(1), told=False, **embedded_parts).read("0")
    assert not any(name.startswith("head_") for name in record.measured)
    with pytest.raises(GroundingError, match="no points of single heads"):
        measured_head_points(record)


def test_other_rows_need_a_run_of_their_own(captured):
    _, _, store = captured
    with pytest.raises(GroundingError, match="a run of its own"):
        recorded_generation(store.read("0"), PRESETS["reference_v2_narrative"])


def test_planned_batches_give_the_run_that_single_images_give(captured, embedded_parts, tmp_path, capsys):
    _, dataset, store = captured
    planned = Settings(output_dir=str(tmp_path), n_images=2, generation=SHORT, loading={"batch_size": "auto"})
    together = capture_run(planned, dataset, **embedded_parts)
    assert "2 of 2 images have a grounded answer." in capsys.readouterr().out
    for record_id, alone in store:
        assert together.read(record_id).generation.text == alone.generation.text
        assert torch.equal(together.read(record_id).points, alone.points)
    with pytest.raises(GroundingError, match="batch_size is 'many'; it must be a whole number"):
        Settings(output_dir=str(tmp_path), n_images=2, loading={"batch_size": "many"})


def test_answers_that_hang_on_rounding_are_named():
    told = describe_ties(RunSummary(tuple("abcdefg"), (), (), near_ties=tuple("abcdefg")))
    assert told.startswith("7 answers were chosen within rounding") and told.endswith("a, b, c, d, e and 2 more.")
