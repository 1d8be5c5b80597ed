"""The shipped weights: small, described by their cards, and as good on held-out scenes as a newcomer is told."""

import json
from dataclasses import asdict

import pytest

from core.embedded import KINDS, weights_path
from core.embedded.evaluate import measure_llava, measure_sam
from core.embedded.lmm import LmmRecipe
from core.embedded.sam_training import SamRecipe
from core.embedded.vision import VisionRecipe
from core.errors import GroundingError
from core.lmm import load_lmm
from core.masks import load_segmenter
from core.phrases import load_nlp

SCENES = 12  # of another seed than the cards' scenes


def test_all_weights_together_are_under_40_megabytes_and_torch_weights_are_safetensors():
    files = {kind: [file for file in weights_path(kind).rglob("*") if file.is_file()] for kind in KINDS}
    assert sum(file.stat().st_size for kind in KINDS for file in files[kind]) < 40e6
    for kind in ("llava", "sam"):  # spaCy has a format of its own
        assert {file.suffix for file in files[kind]} <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_has_a_card_with_data_recipe_seed_and_results(kind):
    card = (weights_path(kind) / "README.md").read_text().lower()
    assert all(word in card for word in ("data", "recipe", "seed", "measured"))


def test_cards_tell_the_recipes_of_this_code():
    llava, sam = ((weights_path(kind) / "README.md").read_text() for kind in ("llava", "sam"))
    assert str(asdict(VisionRecipe())) in llava and str(asdict(LmmRecipe())) in llava
    assert str(asdict(SamRecipe())) in sam


def test_unknown_embedded_model_is_refused():
    with pytest.raises(GroundingError, match="the embedded models are llava, sam, en"):
        weights_path("llama")


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter("embedded", device="cpu")


def test_embedded_llava_names_and_points_at_held_out_objects(segmenter):
    lmm = load_lmm("embedded", geometry="pad", device="cpu")
    measured = measure_llava(lmm, segmenter, load_nlp("embedded"), scenes=SCENES, seed=1)
    assert measured["phrases"] > SCENES
    assert measured["pair_precision"] > 0.5 and measured["pair_recall"] > 0.5
    assert measured["point_accuracy"] >= 0.4
    assert measured["point_accuracy"] >= 5 * measured["random_point"]
    told = json.loads((weights_path("llava") / "measured.json").read_text())
    assert abs(told["point_accuracy"] - measured["point_accuracy"]) < 0.25


def test_embedded_sam_segments_what_it_is_pointed_at(segmenter):
    measured = measure_sam(segmenter, scenes=SCENES, seed=1)
    assert measured["iou_last"] > 0.7
    told = json.loads((weights_path("sam") / "measured.json").read_text())
    assert abs(told["iou_last"] - measured["iou_last"]) < 0.1
