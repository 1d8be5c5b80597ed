"""What the claims are told from: long descriptions, the model with the picture first, sinks, counts by scene."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.batch import encode
from core.errors import GroundingError
from core.geometry import View
from core.lmm import load_lmm
from core.phrases import load_nlp
from core.prompts import IMAGE, render_prompt
from embedded import train
from embedded.claims import __main__ as command
from embedded.claims.measure import FIELDS, claims_settings, look_inside, measure_model, measure_scene
from embedded.claims.record import add_model
from embedded.claims.sinks import TIMES, cell_at, concentration, norm_ratios, object_cells
from embedded.evaluate import count_scene, described_scenes, measure_llava
from embedded.recipes import clip, llava
from embedded.recipes.clip import VisionRecipe
from embedded.recipes.llava import IGNORE, LmmRecipe, load_scenes, sample
from embedded.scenes.captions import DESCRIBE, PLACES, place, spoken, told_places
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.long_captions import LONGEST, SHORTEST, count_words, long_caption
from embedded.scenes.pictures import SHAPES
from embedded.scenes.scenes import make_scene, planned_objects

VISION = VisionRecipe(
    image_size=48, patch_size=12, width=32, layers=2, heads=2, window=3, small_pictures=48, small_steps=4,
    scenes=32, steps=2, placed_steps=2, batch=8,
)  # fmt: skip
TINY = LmmRecipe(
    width=32, layers=2, heads=2, mlp=64, vocabulary=700, scenes=32, steps=3, batch=4, save_every=2, long_answers=True
)
BOTH = {"long": (TINY, DESCRIBE), "long_picture_first": (replace(TINY, picture_first=True), "")}


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims") / "vision"
    clip.pretrain(VISION, folder)
    return folder


@pytest.fixture(scope="module")
def models(vision):
    """Both tiny models, as loaded from their folders."""
    scenes = load_scenes(TINY, vision)
    made = {}
    for name, (recipe, _) in BOTH.items():
        llava.train(recipe, vision, vision.parent / name, scenes=scenes)
        made[name] = load_lmm(vision.parent / name, geometry="pad")
    return made


@pytest.fixture(scope="module")
def nlp():
    return load_nlp("embedded")


# ---- long descriptions


@pytest.mark.parametrize("size", [(48, 64), (64, 48)])
def test_planned_objects_are_those_that_are_drawn(size):
    for index in range(8):
        scene = make_scene("val", index, size=size)
        objects, texture, ground = planned_objects("val", index, size=size)
        assert (texture, ground) == (scene.texture, scene.ground)
        told = [(thing.category, thing.colour, thing.centre, thing.scale) for thing in objects]
        assert told == [(thing.category, thing.colour, thing.centre, thing.scale) for thing in scene.objects]


def test_long_descriptions_are_80_to_150_tokens_and_leave_the_short_ones_alone():
    lengths = [count_words([long_caption("train", index)]) for index in range(600)]
    assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST
    assert np.std(lengths) > 10
    scene = make_scene("train", 3, size=SHAPES[3])
    assert scene.caption == make_scene("train", 3, size=SHAPES[3]).caption != long_caption("train", 3)
    assert long_caption("train", 3) == long_caption("train", 3) != long_caption("val", 3)


def test_a_long_description_tells_every_object_and_its_place_and_no_other():
    for index in range(40):
        text = long_caption("val", index)
        objects, *_ = planned_objects("val", index, size=SHAPES[index % len(SHAPES)])
        assert {name for name in CATEGORIES if re.search(rf"\b{name}\b", text)} == {each.category for each in objects}
        assert told_places(text) == [(each.category, place(each)) for each in objects]
        compared = r"The (?:\w+ )?(\w+) is (larger|smaller) than the (?:\w+ )?(\w+)\."
        for first, relation, second in re.findall(compared, text):
            sizes = {each.category: each.scale for each in objects}
            if len(sizes) == len(objects):
                assert (sizes[first] > sizes[second]) == (relation == "larger")


def test_the_embedded_pipeline_finds_every_mention_in_long_descriptions(nlp):
    for index in range(50):
        text = long_caption("val", index)
        mentions = [found.start() for found in re.finditer(rf"\b({'|'.join(CATEGORIES)})\b", text)]
        roots = [chunk.root.idx for chunk in nlp(text).noun_chunks if chunk.root.text in CATEGORIES]
        assert roots == mentions, text


# ---- both models are asked as they were trained


@pytest.mark.parametrize("name", BOTH)
def test_a_saved_model_is_asked_with_the_ids_it_was_trained_on(models, name):
    recipe, prompt = BOTH[name]
    lmm = models[name]
    tokenizer, picture = lmm.processor.tokenizer, make_scene("val", 1, size=(60, 90)).image
    text = (long_caption("train", 0), (("What color is the moon?", "The moon is red."),) * 2)
    for described, asked in ((True, prompt), (False, "What color is the moon?")):
        made = sample(recipe, tokenizer, text, 16, np.random.default_rng(0), described=described)
        learnt = int((made.labels != IGNORE).nonzero()[0])
        given = encode(lmm.family, [picture], [render_prompt(asked, lmm.family)], many=False)
        assert given.prompt_ids[0].tolist() == made.ids[:learnt].tolist()
        assert tokenizer.decode(made.labels[made.labels != IGNORE]).startswith(
            text[0] + "</s>" if described else "The moon is red.</s>"
        )


def test_nothing_stands_before_the_picture_or_behind_it(models):
    lmm = models["long_picture_first"]
    generation = lmm.generate(make_scene("val", 1, size=(60, 90)).image, "", max_new_tokens=4)
    image = lmm.processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert generation.prompt_ids.tolist() == [image] * 16
    assert generation.attention[0].sum() == pytest.approx(1, abs=1e-5)  # all that the first row can look at
    again = lmm.replay(make_scene("val", 1, size=(60, 90)).image, "", generation.token_ids)
    assert torch.allclose(generation.attention, again.attention, atol=1e-5)
    long = models["long"].generate(make_scene("val", 1, size=(60, 90)).image, DESCRIBE, max_new_tokens=1)
    assert long.prompt_ids[0] == models["long"].processor.tokenizer.bos_token_id
    assert long.attention.sum() < 0.999


def test_the_words_of_long_descriptions_are_whole_tokens(models):
    tokenizer = models["long"].processor.tokenizer
    for index in range(20):  # of the 32 scenes that it learnt from
        text = long_caption("train", index)
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == pytest.approx(count_words([text]), abs=4)
    assert spoken([("a", (("b", "c"),))]) == ["a", "b", "c", DESCRIBE] and len(PLACES) == 9


def test_a_model_goes_on_from_another_token_by_token(models, vision, tmp_path):
    """With no step to speak of, a word has the same row in both, whatever its number."""
    other = replace(TINY, picture_first=True, vocabulary=600, steps=1, learning_rate=1e-12)
    made = llava.train(other, vision, tmp_path, start=vision.parent / "long")
    lmm = models["long"]
    tokenizer, old = load_lmm(tmp_path).processor.tokenizer, lmm.processor.tokenizer
    for table in (lambda model: model.get_input_embeddings().weight, lambda model: model.lm_head.weight):
        for token in ("▁image", "▁the", "</s>"):
            ours, theirs = (each.convert_tokens_to_ids(token) for each in (tokenizer, old))
            assert torch.allclose(table(made)[ours], table(lmm.model)[theirs], atol=1e-6)
    projector = (model.model.multi_modal_projector.state_dict() for model in (made, lmm.model))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*(each.values() for each in projector), strict=True))


# ---- sinks


VIEW = View("image", torch.arange(12).view(3, 4), (-10.0, 0.0, 70.0, 60.0))  # cells of 20 x 20, sticks out on the left


def test_concentration_of_even_attention_is_even():
    found = concentration(torch.full((5, 40), 0.01), torch.zeros(40, dtype=torch.bool))
    assert found.visual == pytest.approx(0.4) and found.top1 == pytest.approx(1 / 40)
    assert found.top5 == pytest.approx(5 / 40) and found.ratio == pytest.approx(1)
    assert not found.registers.any() and found.registered == 0


def test_a_sink_is_found_and_does_not_depend_on_the_scale_or_the_order_of_tokens():
    attention = torch.rand(20, 100) * 0.002
    attention[:, 7] += 0.1
    objects = torch.zeros(100, dtype=torch.bool)
    found = concentration(attention, objects)
    assert found.cell == 7 and found.steady == 1 and found.off_objects
    assert found.registers.nonzero().flatten().tolist() == [7] and found.registered == pytest.approx(found.top1)
    other = concentration(3 * attention.flip(0), objects)
    assert (other.cell, other.steady) == (7, 1) and other.top5 == pytest.approx(found.top5)
    assert other.ratio == pytest.approx(found.ratio, rel=1e-4)
    objects[7] = True
    found = concentration(attention, objects)
    assert not found.off_objects and not found.registers.any() and found.registered == 0
    assert found.top1 > TIMES / 100


def test_no_attention_has_no_spread():
    with pytest.raises(GroundingError, match=r"of shape \(0, 4\) hold no attention"):
        concentration(torch.zeros(0, 4), torch.zeros(4, dtype=torch.bool))


def test_cells_of_a_mask_and_of_a_point_on_a_picture_that_is_not_square():
    mask = np.zeros((60, 60), bool)
    mask[40:60, 12:26] = True  # 14 of 20 columns of the second cell of the last row
    mask[0, 59] = True  # one pixel of 400: too little
    assert object_cells(mask, VIEW, 12).nonzero().flatten().tolist() == [9]
    assert cell_at((0.5, 0.5), VIEW) == 0 and cell_at((10.5, 0.5), VIEW) == 1 and cell_at((59.5, 59.5), VIEW) == 11
    with pytest.raises(GroundingError, match="lies beside view 'image'"):
        cell_at((71.0, 3.0), VIEW)


def test_norms_are_compared_with_the_median_visual_token():
    hidden = torch.ones(3, 6, 4)
    hidden[1, 2] *= 50
    hidden[2, 0] *= 20
    largest, first = norm_ratios(hidden, torch.arange(1, 6))
    assert largest.tolist() == [1, 50, 1] and first.tolist() == [1, 1, 20]


# ---- measuring a model


def test_the_card_and_the_claims_count_the_same(models, nlp):
    described = list(described_scenes(models["long"], None, nlp, scenes=3, max_new_tokens=40))
    batched = list(described_scenes(models["long"], None, nlp, scenes=3, max_new_tokens=40, batch=2))
    assert [each.generation.text for each in described] == [each.generation.text for each in batched]
    counts = [count_scene(each) for each in described]
    rows = [measure_scene(each) for each in described]
    for count, row in zip(counts, rows, strict=True):
        assert set(row) == set(FIELDS)
        assert all(count[name] == row[name] for name in ("phrases", "hits", "raw_hits", "said", "places_right"))
        assert row["raw_on_register"] <= row["phrases"] and 0 < row["visual"] < 1


def test_what_is_looked_into_agrees_with_what_was_captured(models, nlp):
    for name, (_, prompt) in BOTH.items():
        lmm = models[name]
        (described,) = described_scenes(lmm, None, nlp, scenes=1, prompt=prompt, max_new_tokens=12)
        found = look_inside(lmm, described, prompt)
        assert found["visual"][0] == pytest.approx(float(described.generation.attention.sum(-1).mean()), abs=1e-5)
        assert len(found["largest"]) == len(found["first"]) == 3
        if name == "long_picture_first":
            assert found["word"] == [0] and found["first_token"][0] == pytest.approx(
                float(described.generation.attention[:, 0].mean()), abs=1e-5
            )
        assert lmm.model.config.text_config._attn_implementation == "sdpa"


def test_the_embedded_llava_is_measured_scene_by_scene(embedded_parts):
    lmm, segmenter, nlp = (embedded_parts[name] for name in ("lmm", "segmenter", "nlp"))
    measured = measure_model(lmm, nlp, claims_settings(scenes=3, max_new_tokens=160), batch=2)
    card = measure_llava(lmm, segmenter, nlp, scenes=3)
    sums = {name: sum(values) for name, values in measured["scenes"].items()}
    assert sums["phrases"] == card["phrases"] > 0
    assert sums["hits"] / sums["phrases"] == pytest.approx(card["point_accuracy"])
    assert sums["raw_hits"] / sums["phrases"] == pytest.approx(card["point_accuracy_raw"])
    assert sums["places_right"] / sums["places"] == pytest.approx(card["places_right"])
    example = measured["example"]
    assert np.shape(example["mean"]) == np.shape(example["raw"]) == np.shape(example["normalised"]) == (10, 10)
    assert example["phrase"] in example["text"] and 0 <= example["index"] < 3
    json.dumps(measured)


def test_the_record_takes_one_model_at_a_time_and_refuses_other_settings(tmp_path):
    file, settings = tmp_path / "claims.json", claims_settings(scenes=2)
    entry = {"prompt": "", "scenes": {name: [1, 2] for name in FIELDS}, "layers": {}, "example": {}}
    add_model("clip", 1, entry, settings, file=file)
    add_model("clip", 0, entry, settings, file=file)
    changed = entry | {"prompt": "again"}
    add_model("clip", 1, changed, settings, file=file)
    content = json.loads(file.read_text())
    assert [(each["name"], each["seed"], each["prompt"]) for each in content["models"]] == [
        ("clip", 0, ""), ("clip", 1, "again"),
    ]  # fmt: skip
    assert content["settings"] == settings and all(each["versions"]["torch"] for each in content["models"])
    with pytest.raises(GroundingError, match=r"other settings: max_new_tokens 200 then, 5 now.*measure all models"):
        add_model("sd", 0, entry, claims_settings(scenes=2, max_new_tokens=5), file=file)
    with pytest.raises(GroundingError, match=r"measured on \[2\] scenes, the settings say 3"):
        add_model("sd", 0, entry, claims_settings(scenes=3), file=file)
    held = add_model("clip", 0, entry, settings, parts={"clip": "a", "reader": "b"}, file=file).read_bytes()
    with pytest.raises(GroundingError, match=r"sd, seed 0 .* another reader \(c\) than clip, seed 0 \(b\)"):
        add_model("sd", 0, entry, settings, parts={"diffusion": "d", "reader": "c"}, file=file)
    assert file.read_bytes() == held


def test_one_command_trains_both_and_records_them(vision, tmp_path, monkeypatch):
    for name, (recipe, _) in (("LONG", BOTH["long"]), ("LONG_PICTURE_FIRST", BOTH["long_picture_first"])):
        monkeypatch.setattr(llava, name, replace(recipe, steps=2))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "vision").symlink_to(vision)
    (tmp_path / "work" / "scenes.pt").symlink_to(vision.parent / "scenes.pt")
    from core.weights import weights_path

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "en").symlink_to(weights_path("en"))
    llava.train(replace(TINY, long_answers=False), vision, tmp_path / "weights" / "llava")
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "weights")]
    claims = ["--claims", str(tmp_path / "claims.json"), "--claim-scenes", "1"]
    train.main(["--only", "long", "--no-cards", "--workers", "1", *places, *claims])
    content = json.loads((tmp_path / "claims.json").read_text())
    assert [model["name"] for model in content["models"]] == list(BOTH)
    folder = tmp_path / "work" / "long" / "long"
    command.main([f"again:3={folder}", "--record", str(tmp_path / "claims.json"), "--scenes", "1"])
    content = json.loads((tmp_path / "claims.json").read_text())
    again, long = content["models"][0], content["models"][1]
    assert (again["name"], again["seed"]) == ("again", 3) and again["scenes"] == long["scenes"]


def test_a_model_to_measure_has_a_name_a_seed_and_a_folder():
    assert command.parse_model("sd_clip:2=runs/a=b") == ("sd_clip", 2, "runs/a=b")
    with pytest.raises(GroundingError, match="write name:seed=folder"):
        command.parse_model("runs/model")
