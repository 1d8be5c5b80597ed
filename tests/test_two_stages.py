"""The embedded LLaVAs' two stages: cached features are the encoder's, and only what should learn does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_family import tiny_data

from core.errors import GroundingError
from core.lmm import load_lmm
from core.training.loss_log import read_losses
from core.training.templates import IGNORE
from embedded.encoder_study import two_stages
from embedded.encoder_study.experiments import joined, record, refuse_unlike, run_folder, run_stage_one
from embedded.encoder_study.feature_cache import smaller
from embedded.encoder_study.two_stages import StageRecipe, caption_sample, run_stage, visual_features
from embedded.encoder_study.variants import TABLE5, TABLE6, VARIANTS, build_encoder, build_llava, fingerprint
from embedded.encoder_study.word_swaps import WordSwaps
from embedded.scenes.pictures import normalise

ONE = StageRecipe(1, scenes=16, batch=4)
TWO = StageRecipe(2, scenes=16, batch=4, learning_rate=1e-3, swaps=WordSwaps())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory):
    """Both stages of the fullest variant: folder of each."""
    work = tmp_path_factory.mktemp("stages")
    run_stage("sd_clip", data, work / "one", ONE, seed=0)
    run_stage("sd_clip", data, work / "two", TWO, seed=0, start=work / "one")
    return work


@pytest.mark.parametrize("name", [variant.name for variant in (*TABLE5, *TABLE6)])
def test_cached_features_lead_to_what_the_encoder_gives(data, name):
    variant = VARIANTS[name]
    model, _ = build_llava(variant, data.cache.parts, seed=1)
    pixels = data.cache.pixels[8:12]
    cached = visual_features(model, {key: part[8:12] for key, part in data.cache.frozen(variant, range(16)).items()})
    given = pixels.float() / 127.5 - 1 if variant.diffusion else normalise(smaller(pixels))
    with torch.no_grad():
        output = model.model.vision_tower(given, output_hidden_states=True)
    wanted = output.hidden_states[-1][:, 1:] if name == "clip" else output.hidden_states[-1]
    assert wanted.shape == cached.shape and cached.shape[1] == 100
    assert (cached - wanted).abs().max() < 5e-3 * wanted.abs().max()  # kept in float16


def test_any_range_of_scenes_is_cut_from_the_same_chunks(data):
    whole = data.cache.latents(range(24))
    files = sorted((data.cache.directory / "latents").iterdir())
    assert torch.equal(data.cache.latents(range(5, 19)), whole[5:19])
    assert len(data.cache.frozen(VARIANTS["dino"], range(9, 11))["features"]) == 2
    assert sorted((data.cache.directory / "latents").iterdir()) == files and len(files) == 3


def test_stage_one_moves_what_learns_and_nothing_else(data, stages):
    before, _ = build_llava(VARIANTS["sd_clip"], data.cache.parts, seed=0)
    after, _ = build_llava(VARIANTS["sd_clip"], data.cache.parts, seed=1)
    two_stages.load_learnt(after, stages / "one" / "model")
    moved = _moved(before, after)
    assert {"projector", "captioner", "positions"} == moved


def test_stage_two_moves_the_language_model_as_well(data, stages):
    before, _ = build_llava(VARIANTS["sd_clip"], data.cache.parts, seed=0)
    after, _ = build_llava(VARIANTS["sd_clip"], data.cache.parts, seed=0)
    two_stages.load_learnt(before, stages / "one" / "model")
    two_stages.load_learnt(after, stages / "two" / "model")
    assert {"projector", "captioner", "positions", "language_model", "lm_head"} == _moved(before, after)


def _moved(before, after) -> set[str]:
    """Parts of the model in which some weight differs."""
    parts = set()
    for (name, one), (_, other) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if not torch.equal(one, other):
            path = name.removeprefix("model.").split(".")
            parts.add("projector" if "projector" in path[0] else path[1] if path[0] == "vision_tower" else path[0])
    return parts


def test_losses_are_logged_for_every_step_and_the_result_is_measured(stages):
    assert [row["step"] for row in read_losses(stages / "one")] == [1, 2, 3, 4]
    result = json.loads((stages / "one" / "result.json").read_text())
    assert result["variant"] == "sd_clip" and result["seed"] == 0 and 0 < result["held_out_loss"] < 10


def test_a_killed_run_goes_on_as_if_nothing_had_happened(data, tmp_path, monkeypatch):
    whole = run_stage("sd_pe", data, tmp_path / "whole", replace(ONE, epochs=2.0), seed=2)
    real, seen = two_stages.fit, []

    def dying(title, modules, loss, recipe, **options):
        def after(step, value):
            options["after"](step, value)
            seen.append(step)
            if step == 5:
                raise KeyboardInterrupt

        real(title, modules, loss, recipe, **{**options, "after": after, "save_every": 3})

    monkeypatch.setattr(two_stages, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        run_stage("sd_pe", data, tmp_path / "killed", replace(ONE, epochs=2.0), seed=2)
    monkeypatch.setattr(two_stages, "fit", real)
    resumed = run_stage("sd_pe", data, tmp_path / "killed", replace(ONE, epochs=2.0), seed=2)
    assert seen[-1] == 5
    assert read_losses(tmp_path / "killed") == read_losses(tmp_path / "whole")
    for name in ("model.safetensors",):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(data, stages):
    modified = (stages / "one" / "result.json").stat().st_mtime_ns
    assert run_stage("sd_clip", data, stages / "one", ONE, seed=0) == stages / "one" / "model"
    assert (stages / "one" / "result.json").stat().st_mtime_ns == modified
    with pytest.raises(GroundingError, match="other settings: seed 0 then, 1 now"):
        run_stage("sd_clip", data, stages / "one", ONE, seed=1)


def test_a_killed_run_is_not_gone_on_with_under_other_settings(data, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(two_stages, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage("sd_pe", data, tmp_path, ONE, seed=2)
    with pytest.raises(GroundingError, match="other settings: seed 2 then, 3 now"):
        run_stage("sd_pe", data, tmp_path, ONE, seed=3)


def test_the_same_run_is_refused_until_the_first_has_written_its_result(data, tmp_path, monkeypatch):
    real, refused = two_stages.held_out_loss, []

    def measured_while_another_starts(*arguments):
        before = read_losses(tmp_path)
        with pytest.raises(GroundingError, match=r"this process is training in .* already"):
            run_stage("sd_pe", data, tmp_path, ONE, seed=2)
        refused.append(read_losses(tmp_path) == before)
        return real(*arguments)

    monkeypatch.setattr(two_stages, "held_out_loss", measured_while_another_starts)
    model = run_stage("sd_pe", data, tmp_path, ONE, seed=2)
    assert refused == [True] and run_stage("sd_pe", data, tmp_path, ONE, seed=2) == model


def test_stage_two_needs_a_start_and_held_out_scenes_stay_out(data, tmp_path):
    with pytest.raises(GroundingError, match="start"):
        run_stage("clip", data, tmp_path / "x", TWO, seed=0)
    with pytest.raises(GroundingError, match="held-out"):
        run_stage("clip", data, tmp_path / "x", replace(ONE, scenes=20), seed=0)
    with pytest.raises(GroundingError, match="no encoder variant"):
        run_stage("vgg", data, tmp_path / "x", ONE, seed=0)


def test_the_result_is_a_model_like_any_other(data, stages):
    from embedded.scenes.scenes import make_scene

    lmm = load_lmm(stages / "two" / "model", geometry="pad")
    generation = lmm.generate(make_scene("val", 0, size=(120, 160)).image, "What is this?", max_new_tokens=3)
    assert generation.attention.shape[1] == 100 and generation.views[0].index.shape == (10, 10)
    text = "".join((stages / "two" / "model" / name).read_text() for name in ("config.json", "processor_config.json"))
    assert str(stages.parent) not in text and str(data.cache.directory.parent) not in text


def test_the_picture_carries_no_loss_in_stage_one(data):
    _, processor = build_llava(VARIANTS["clip"], data.cache.parts)
    tokenizer = processor.tokenizer
    row = caption_sample(tokenizer, "a red star")
    learnt = row.labels != IGNORE
    assert (row.ids == tokenizer.convert_tokens_to_ids("<image>")).sum() == 100
    assert "a red star" in tokenizer.decode(row.ids[learnt]) and not learnt[:100].any()


def test_a_seed_decides_the_new_weights_only(data):
    one, other = (build_encoder(VARIANTS["sd_pe_ic"], data.cache.parts, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.captioner.linear_1.weight, other.captioner.linear_1.weight)
    assert torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)


def test_runs_of_both_tables_are_recorded(data, tmp_path):
    run_stage_one(tmp_path, data, [("clip", 0), ("sd_t0", 1)], recipe=ONE)
    content = json.loads(record(tmp_path, tmp_path / "losses.json").read_text())
    assert [(run["variant"], run["seed"], len(run["losses"])) for run in content["runs"]] == [
        ("clip", 0, 1),
        ("sd_t0", 1, 1),
    ]
    logged = [row["loss"] for row in read_losses(run_folder(tmp_path, "clip", 0, 1))]
    assert content["runs"][0]["losses"][0] == pytest.approx(sum(logged) / 4, abs=1e-4)
    with pytest.raises(GroundingError, match="make embedded"):
        record(tmp_path / "nothing", tmp_path / "losses.json")
    held = {**content, "runs": [{**content["runs"][0], "seed": 7}, content["runs"][0]], "probes": [{"variant": "sd"}]}
    both = joined(held, content)
    assert [run["seed"] for run in both["runs"] if run["variant"] == "clip"] == [0, 7]
    assert both["probes"] == [{"variant": "sd"}]
    with pytest.raises(GroundingError, match=r"losses of torch 1\.0 and .* do not compare"):
        joined({**held, "torch": "1.0"}, content)


def test_a_record_that_runs_cannot_join_is_refused_before_they_are_trained(data, tmp_path):
    run_stage_one(tmp_path, data, [("clip", 0)], recipe=ONE)
    file = record(tmp_path, tmp_path / "losses.json")
    refuse_unlike(file)
    refuse_unlike(tmp_path / "none.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "diffusers": "0.1"}))
    with pytest.raises(GroundingError, match=r"losses of diffusers 0\.1 and .* write them to a record of their own"):
        refuse_unlike(file)


@pytest.fixture
def other_reader(data, tmp_path):
    """The same data with a language model of which one weight differs, as after training it anew."""
    folder = tmp_path / "reader"
    shutil.copytree(data.cache.parts.reader, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return replace(data, cache=replace(data.cache, parts=replace(data.cache.parts, reader=folder)))


def test_a_part_is_known_by_its_weights_in_float16_and_a_vae_by_its_encoder(tmp_path):
    weight, other = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    def written(name: str, kept: torch.Tensor, left: torch.Tensor) -> str:
        folder = tmp_path / name
        (folder / "vae").mkdir(parents=True)
        save_file({"encoder.w": kept, "decoder.w": left}, folder / "vae" / "model.safetensors")
        return fingerprint(folder)

    known = written("trained", weight, other)
    assert known == written("shipped", weight.half().float(), weight) and len(known) == 12
    save_file({"weight": weight}, tmp_path / "trained" / "tag_head.safetensors")  # stays where CLIP was trained
    assert known == fingerprint(tmp_path / "trained")
    with pytest.raises(GroundingError, match="holds no weights"):
        fingerprint(tmp_path / "nothing")
    assert known != written("transposed", weight.T.contiguous(), other)
    assert known != written("retrained", weight + 0.01, other)


def test_runs_on_another_language_model_join_no_record_and_go_on_in_no_folder(data, other_reader, stages, tmp_path):
    with pytest.raises(GroundingError, match=r"other settings: parts\.reader '\w{12}' then, '\w{12}' now"):
        run_stage("sd_clip", other_reader, stages / "one", ONE, seed=0)
    old, new = tmp_path / "old", tmp_path / "new"
    run_stage_one(old, data, [("clip", 0)], recipe=ONE)
    run_stage_one(new, other_reader, [("clip", 1)], recipe=ONE)
    file = record(old, tmp_path / "losses.json")
    held = file.read_bytes()
    with pytest.raises(GroundingError, match=r"clip, seed 1 was trained with another reader .* than clip, seed 0"):
        record(new, file, join=True)
    assert file.read_bytes() == held
    variant = VARIANTS["clip"]
    refuse_unlike(file, data.cache.parts.fingerprints(variant))
    with pytest.raises(GroundingError, match=r"a new run was trained with another reader .* a record of its own"):
        refuse_unlike(file, other_reader.cache.parts.fingerprints(variant))
