"""The training recipes of the embedded models, at a size of seconds: they learn, they resume, what they write loads."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.errors import GroundingError
from core.lmm import load_lmm
from core.sam import SamConfig, build_sam
from core.weights import weights_path
from embedded import train
from embedded.claims.measure import FIELDS, claims_settings
from embedded.claims.record import add_model
from embedded.parts import unpack
from embedded.recipes import clip as vision_recipe
from embedded.recipes import llava as lmm_recipe
from embedded.recipes import sam as sam_recipe
from embedded.recipes.clip import TagHead, VisionRecipe
from embedded.recipes.llava import IGNORE, LmmRecipe, conversation
from embedded.recipes.sam import SamRecipe
from embedded.recipes.tokenizer import IMAGE, train_tokenizer
from embedded.scenes.captions import DESCRIBE, place, told_places
from embedded.scenes.pictures import MEAN, TAGS, multi_hot, square, tag_numbers
from embedded.scenes.scenes import make_scene

VISION = VisionRecipe(
    image_size=48, patch_size=12, width=32, layers=2, heads=2, window=3, small_pictures=48, small_steps=12,
    scenes=32, steps=6, placed_steps=4, batch=8,
)  # fmt: skip
LMM = LmmRecipe(width=32, layers=2, heads=2, mlp=64, vocabulary=600, scenes=32, steps=6, batch=4, save_every=2)

SAM = SamRecipe(
    config=SamConfig(image_size=64, width=32, depth=2, heads=2, window=2, prompt_width=32),
    pictures=6, encoder_steps=3, steps=4, batch=2, prompts=2,
)  # fmt: skip
SAM_SHAPES = ((48, 64), (64, 48))


@pytest.fixture(scope="module")
def encoder_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipes") / "vision"
    vision_recipe.pretrain(VISION, directory)
    return directory


@pytest.fixture(scope="module")
def texts():
    scenes = [make_scene("train", index, size=(48, 48)) for index in range(60)]
    return [(scene.caption, scene.questions) for scene in scenes]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer([text for caption, turns in texts for text in (caption, *sum(turns, ()))], size=700)


@pytest.mark.parametrize("size", [(40, 64), (64, 40)])
def test_square_pads_both_sides_with_the_mean_colour(size):
    height, width = size
    padded = np.asarray(square(Image.new("RGB", (width, height), (255, 0, 0)), 64))
    red = (padded == (255, 0, 0)).all(-1)
    assert red.any(0).sum() == width and red.any(1).sum() == height
    assert tuple(padded[0, 0]) == tuple(int(255 * channel) for channel in MEAN)


def test_tags_are_the_words_of_the_description():
    for index in range(10):
        scene = make_scene("train", index, size=(48, 64))
        hot = multi_hot([tag_numbers(scene)])[0]
        assert {TAGS[number] for number in torch.nonzero(hot).flatten()} == {
            tag for tag in TAGS if f" {tag} " in scene.caption.replace(",", " ").replace(".", " ")
        }


def test_place_tags_are_what_the_captions_say():
    for index in range(20):
        scene = make_scene("train", index, size=(48, 64))
        hot = vision_recipe.place_tags([scene.caption])[0]
        said = {vision_recipe.PLACE_TAGS[number] for number in torch.nonzero(hot).flatten()}
        true = {(name, place(thing)) for thing in scene.objects for name in (thing.category, None)}
        assert said == true
        assert {pair for pair in said if pair[0]} == set(told_places(scene.caption))


def test_waves_tell_every_cell_apart_by_its_row_and_its_column():
    encoder = vision_recipe.build_encoder(VISION)
    before = encoder.embeddings.position_embedding.weight.detach().clone()
    pixels = torch.randn(4, 3, 48, 48)
    vision_recipe.add_waves(encoder, pixels)
    waves = (encoder.embeddings.position_embedding.weight.detach() - before)[1:].unflatten(0, (4, 4))
    rows, columns = waves.chunk(2, dim=-1)
    assert torch.allclose(rows, rows[:, :1].expand_as(rows), atol=1e-6)
    assert torch.allclose(columns, columns[:1].expand_as(columns), atol=1e-6)
    assert torch.cdist(waves.flatten(0, 1), waves.flatten(0, 1)).add(10 * torch.eye(16)).min() > 0.1
    strength = encoder.embeddings.patch_embedding(pixels).square().mean().sqrt()
    assert torch.allclose(waves.square().mean().sqrt(), strength, rtol=1e-4)
    assert torch.equal(encoder.embeddings.position_embedding.weight[0], before[0])  # the class token has no place


def test_picture_score_is_the_log_sum_exp_of_its_patches():
    head, features = TagHead(16, 5), torch.randn(2, 9, 16)
    assert torch.allclose(head(features), head.patch_scores(features).exp().sum(1).log(), atol=1e-5)


def test_window_over_the_whole_grid_is_the_encoder_itself():
    encoder = vision_recipe.build_encoder(VISION).eval()
    pixels = torch.randn(2, 3, 48, 48)
    whole = encoder(pixels).last_hidden_state[:, 1:]
    assert torch.allclose(vision_recipe.encode_window(encoder, pixels, 0, 0), whole, atol=1e-5)


def test_any_text_survives_the_tokenizer(tokenizer, texts):
    for text in (texts[0][0], "Où est le café 😀?", "tabs\tand\nlines", "日本語"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a red umbrella.", add_special_tokens=False).input_ids) == [
        "▁a", "▁red", "▁umbrella", ".",
    ]  # fmt: skip


def test_loss_falls_on_the_answers_tokens_only(tokenizer, texts):
    caption, turns = texts[0]
    for seed in range(6):
        made = conversation(tokenizer, caption, turns, 4, np.random.default_rng(seed), described=seed % 2 == 0)
        said = made.labels != IGNORE
        assert torch.equal(made.ids[said], made.labels[said])
        answers = tokenizer.decode(made.ids[said]).split(tokenizer.eos_token)[:-1]
        asked = tokenizer.decode(made.ids[~said])
        allowed = {caption, *(answer for _, answer in turns)}
        assert {answer.strip() for answer in answers} <= allowed and len(answers) == 3 - seed % 2
        assert (made.ids == tokenizer.convert_tokens_to_ids(IMAGE)).sum() == 4
        assert asked.count("ASSISTANT:") == len(answers)


def test_vision_recipe_learns_and_its_encoder_loads(encoder_directory):
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(encoder_directory)
    assert encoder.config.image_size == VISION.image_size
    start = vision_recipe.build_encoder(VISION).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in encoder.state_dict().items())


def test_killed_llava_training_goes_on_where_it_was(encoder_directory, tmp_path, monkeypatch):
    whole = lmm_recipe.train(LMM, encoder_directory, tmp_path / "whole")
    real, calls = lmm_recipe.answer_loss, []

    def die_in_the_fifth(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(lmm_recipe, "answer_loss", die_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        lmm_recipe.train(LMM, encoder_directory, tmp_path / "killed")
    monkeypatch.setattr(lmm_recipe, "answer_loss", real)
    resumed = lmm_recipe.train(LMM, encoder_directory, tmp_path / "killed")
    assert len(calls) == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    lmm = load_lmm(tmp_path / "whole", geometry="pad")
    generation = lmm.generate(make_scene("val", 0, size=(96, 128)).image, DESCRIBE, max_new_tokens=5)
    assert generation.attention.shape == (len(generation.token_ids), 16)


def test_encoder_stays_frozen(encoder_directory, tmp_path):
    from transformers import CLIPVisionModel

    model = lmm_recipe.train(replace(LMM, steps=2), encoder_directory, tmp_path / "llava")
    trained = CLIPVisionModel.from_pretrained(encoder_directory).state_dict()
    for name, value in model.model.vision_tower.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_embedded_sam_builder_is_segment_anythings():
    """The same structure as the registry's ViT-B: with its sizes every parameter has its name and shape."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        official = sam_model_registry["vit_b"]().state_dict()
        ours = build_sam(image_size=1024, patch_size=16, width=768, depth=12, heads=12, window=14, prompt_width=256)
        ours = ours.state_dict()
    # The decoder's MLP has 4 x 256 units here and 2048 there; the blocks that attend globally are others.
    different = {name for name in official if name not in ours or (ours[name].shape != official[name].shape)}
    assert set(official) == set(ours)
    assert all("rel_pos" in name or ".mlp.lin" in name for name in different), different


def test_sam_recipe_writes_what_loads(tmp_path, monkeypatch):
    from core.masks import load_segmenter

    monkeypatch.setattr(sam_recipe, "SHAPES", SAM_SHAPES)
    sam_recipe.train(SAM, tmp_path / "sam")
    segmenter = load_segmenter(str(tmp_path / "sam"))
    segmenter.set_image(make_scene("val", 0, size=(60, 90)).image)
    found = segmenter.predict(torch.tensor([[30.5, 20.5]]))
    assert found.masks.shape == (1, 3, 60, 90)


def test_one_command_trains_measures_and_does_not_repeat_what_is_finished(tmp_path, monkeypatch, capsys):
    for module, name, small in (
        (vision_recipe, "VisionRecipe", VISION),
        (lmm_recipe, "LmmRecipe", replace(LMM, steps=2)),
        (sam_recipe, "SamRecipe", SAM),
    ):
        monkeypatch.setattr(module, name, lambda small=small: small)
    monkeypatch.setattr(sam_recipe, "SHAPES", SAM_SHAPES)
    weights = tmp_path / "weights"
    shutil.copytree(weights_path("en"), weights / "en")
    command = ["--only", "vision", "llava", "sam", "--output", str(weights), "--work", str(tmp_path / "work")]
    train.main([*command, "--workers", "1", "--card-scenes", "2"])
    made = {file: file.stat().st_mtime_ns for file in weights.rglob("*.safetensors")}
    assert {file.parent.name for file in made} == {"llava", "sam"}
    for kind in ("llava", "sam"):
        assert "**Measured**" in (weights / kind / "README.md").read_text()
        assert json.loads((weights / kind / "measured.json").read_text())["scenes"] == 2
    assert str(tmp_path) not in (weights / "llava" / "config.json").read_text()
    train.main([*command, "--no-cards"])
    assert made == {file: file.stat().st_mtime_ns for file in weights.rglob("*.safetensors")}


def test_one_command_trains_difflmm_and_its_variants(encoder_directory, tmp_path, monkeypatch):
    """The whole of DiffLMM's side at a size of seconds: parts, both stages, what is shipped, the recorded losses."""
    from embedded.encoder_study import diffusion_curve, experiments, probes, two_stages
    from embedded.encoder_study.experiments import run_folder
    from embedded.encoder_study.two_stages import StageRecipe
    from embedded.encoder_study.variants import TABLE5, TABLE6
    from embedded.encoder_study.word_swaps import WordSwaps
    from embedded.recipes import autoencoder, diffusion, dino, language_model

    work, weights, losses = tmp_path / "work", tmp_path / "weights", tmp_path / "recorded" / "losses.json"
    quick = probes.ProbeRecipe(scenes=8, steps=2, batch=4)
    vae = {"channels": (8, 8, 8, 8), "batch": 2, "steps": 2, "whole_steps": 1, "second_steps": 1, "decoder_steps": 1}
    unet = {"channels": (16, 16, 16, 16), "text_width": 16, "batch": 2, "steps": 2, "filled": 24, "cutouts": 16}
    unet |= {"plain_steps": 1, "filled_steps": 0, "cutout_steps": 0, "aligned_from": 1}
    objects = {"object_steps": 1, "mosaic_steps": 1, "object_batch": 4, "cutouts": 16}
    painted = {"curve_pictures": 2, "curve_steps": 2, "pictures": 2, "steps": 2}
    for module, name, changes in (
        (autoencoder, "AutoencoderRecipe", vae),
        (diffusion, "DiffusionRecipe", {**unet, "cutout_batch": 2}),
        (diffusion_curve, "ShapeRecipe", {"channels": (8, 8, 8, 8), "steps": 2, "batch": 4, "cutouts": 16}),
        (diffusion_curve, "MeasureRecipe", {**painted, "probe": quick}),
        (dino, "DinoRecipe", {"steps": 3, **objects, "batch": 2, "layers": 1, "scenes": 16}),
        (language_model, "ReaderRecipe", {"width": 16, "layers": 1, "heads": 2, "mlp": 16, "steps": 2, "batch": 2}),
        (probes, "ProbeRecipe", {"scenes": 8, "steps": 2, "batch": 4}),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), **changes))
    monkeypatch.setattr(experiments, "SCENES", 16)
    monkeypatch.setattr(experiments, "HELD_OUT", 8)
    monkeypatch.setattr(two_stages, "STAGE1", StageRecipe(1, scenes=8, batch=4))
    monkeypatch.setattr(two_stages, "STAGE2", StageRecipe(2, scenes=8, batch=4, swaps=WordSwaps()))
    monkeypatch.setattr(vision_recipe, "VisionRecipe", lambda: replace(VISION, image_size=120, window=5))
    (work / "diffusion" / "vae").mkdir(parents=True)
    (work / "diffusion" / "vae" / "config.json").write_text("{}")  # as a run killed while it saved leaves it
    command = ["--output", str(weights), "--work", str(work), "--record", str(losses), "--workers", "1", "--no-cards"]
    command += [
        "--parts",
        str(tmp_path / "parts"),
        "--seeds",
        "0",
        "--claims",
        str(tmp_path / "claims.json"),
        "--claim-scenes",
        "2",
    ]
    entry = {"prompt": "", "scenes": {name: [1, 2] for name in FIELDS}, "layers": {}, "example": {}}
    former = {"reader": "another"}  # a family trained before, which a whole new one replaces
    add_model("clip", 7, entry, claims_settings(scenes=2), parts=former, file=tmp_path / "claims.json")
    train.main(["--only", "vision", "dino", "diffusion", "reader", "difflmm", "variants", *command])
    claimed = json.loads((tmp_path / "claims.json").read_text())["models"]
    assert {each["name"] for each in claimed} == {variant.name for variant in TABLE5}
    assert {each["seed"] for each in claimed} == {0} and all(each["parts"]["reader"] != "another" for each in claimed)
    content = json.loads(losses.read_text())
    stages = [{run["variant"] for run in content["runs"] if run["recipe"]["stage"] == stage} for stage in (1, 2)]
    assert stages == [{variant.name for variant in TABLE5 + TABLE6}, {variant.name for variant in TABLE5}]
    assert [row["variant"] for row in content["probes"]] == probes.probed_variants()
    assert (work / "samples.png").is_file()
    assert json.loads((losses.parent / diffusion_curve.CURVE).read_text())[-1]["steps"] == 2
    assert len(json.loads((losses.parent / diffusion_curve.QUALITY).read_text())["probes"]) == 20
    again = tmp_path / "again"
    train.main(
        ["--only", "reader", "--from-shipped", *command, "--work", str(again)]
    )  # all there, so nothing is trained
    for folder in ("vision", "dino", "diffusion/vae", "diffusion/unet", "diffusion/text_encoder", "reader"):
        (file,) = (again / folder).glob("*.safetensors")
        trained, unpacked = load_file(work / folder / file.name), load_file(file)
        assert trained.keys() == unpacked.keys()
        assert all(torch.equal(value.half(), unpacked[key].half()) for key, value in trained.items()), folder
    # some variants from the shipped parts, none of which reads DINO: their losses join the record
    shutil.rmtree(again / "dino")
    some = ["--only", "variants", "--from-shipped", *command, "--work", str(again), "--variants"]
    train.main([*some, "sd_pe", "sd"])
    assert not (again / "dino").exists() and not (again / "variants.finished").exists()
    retrained, runs = json.loads(losses.read_text()), run_folder(again, "sd_pe", 0, 2) / "result.json"
    assert [[(run["variant"], run["recipe"]["stage"]) for run in each["runs"]] for each in (retrained, content)] == [
        sorted((run["variant"], run["recipe"]["stage"]) for run in content["runs"])
    ] * 2
    assert retrained["probes"][:3] == content["probes"][:3]
    assert json.loads(runs.read_text())["held_out_loss"] in [run["held_out_loss"] for run in retrained["runs"]]
    further = [*some, "sd_pe", "--seeds", "0", "1"]  # in the same folder: what is there is not trained again
    before = (run_folder(again, "sd_pe", 0, 1) / "result.json").stat().st_mtime_ns
    train.main(further)
    assert (run_folder(again, "sd_pe", 0, 1) / "result.json").stat().st_mtime_ns == before
    claimed = json.loads((tmp_path / "claims.json").read_text())["models"]
    assert [each["seed"] for each in claimed if each["name"] == "sd_pe"] == [0, 1]
    assert sum(run["variant"] == "sd_pe" for run in json.loads(losses.read_text())["runs"]) == 4
    with pytest.raises(GroundingError, match="holds no trained dino"):
        train.main([*some, "clip_dino"])
    configs = [file.read_text() for file in (tmp_path / "parts").rglob("*.json")]
    assert configs and not any(str(tmp_path) in text for text in configs)
    (again / "dino").mkdir()
    with pytest.raises(GroundingError, match="holds vision, dino, diffusion, reader already"):
        unpack(again, folder=tmp_path / "parts", weights=weights)
    for name in ("llava_two_stages", "difflmm"):
        assert str(tmp_path) not in (weights / name / "config.json").read_text()
        generation = load_lmm(weights / name).generate(make_scene("val", 0).image, DESCRIBE, max_new_tokens=3)
        assert generation.attention.shape[1] == 100
