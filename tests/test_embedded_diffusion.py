"""The latent diffusion model's recipes at a size of seconds: they learn, they resume, what they write loads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from core.encoders.diffusion import DiffusionVisionModel
from core.encoders.parts import empty_text_embedding
from embedded.encoder_study.diffusion_curve import kept_latents
from embedded.recipes import autoencoder, diffusion
from embedded.recipes.autoencoder import AutoencoderRecipe, as_input, encode_all, random_crops, train_autoencoder
from embedded.recipes.denoising import denoise, load_diffusion, sample
from embedded.recipes.diffusion import (
    DiffusionRecipe,
    Latents,
    build_text_tokenizer,
    draw_times,
    noise_weights,
    pictures_seen,
    source_of,
    text_ids,
    train_diffusion,
)
from embedded.recipes.fitting import Average, Fit, fit, step_generator
from embedded.scenes.captions import listed, listing
from embedded.scenes.pictures import listing_of_one, render_cutout, training_scenes
from embedded.scenes.scenes import make_scene

VAE = AutoencoderRecipe(
    channels=(8, 8, 16, 16),
    crop=32,
    batch=4,
    steps=8,
    whole_batch=2,
    whole_steps=2,
    average=0.9,
    second_steps=2,
    decoder_steps=2,
)
UNET = DiffusionRecipe(
    channels=(16, 16, 32, 32), heads=2, text_width=16, text_layers=1, text_length=40, vocabulary=400,
    cutout_batch=4, plain_steps=1, filled_steps=1, cutout_steps=1, batch=4, steps=6,
)  # fmt: skip
SCENES = [make_scene("train", number, size=(64, 64)) for number in range(6)]
CAPTIONS = [scene.caption for scene in SCENES]
CUTOUTS = [render_cutout(number, side=32, seed=2) for number in range(6)]


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(np.stack([np.asarray(scene.image).transpose(2, 0, 1) for scene in SCENES]))


@pytest.fixture(scope="module")
def directory(pixels, tmp_path_factory):
    """VAE and U-Net of a few steps, in diffusers' layout."""
    directory = tmp_path_factory.mktemp("ldm")
    vae = train_autoencoder(VAE, pixels, directory / "vae")
    small = torch.from_numpy(np.stack([one[0] for one in CUTOUTS]))
    scenes, cutouts = (encode_all(vae, some) * vae.config.scaling_factor for some in (pixels, small))
    texts = [listing_of_one(tags) for _, tags in CUTOUTS]
    small = Latents(cutouts, texts)
    sources = {"plain": small, "filled": small, "cutouts": small, "scenes": Latents(scenes, CAPTIONS)}
    train_diffusion(UNET, sources, directory)
    return directory


def test_scaled_latents_have_unit_deviation(directory, pixels):
    vae = load_diffusion(directory)[0]
    assert (encode_all(vae, pixels) * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-3)
    assert encode_all(vae, pixels).shape == (6, 16, 8, 8)


DIES_WHILE_SAVING = """
import resource, signal, sys
from pathlib import Path

import torch

from diffusers import AutoencoderKL

from embedded.encoder_study.diffusion_curve import kept_latents
from embedded.scenes.pictures import training_scenes

work = Path(sys.argv[1])
vae = AutoencoderKL.from_pretrained(work / "vae").eval()
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))  # bytes of a file
try:
    kept_latents(vae, torch.zeros(6, 3, 64, 64, dtype=torch.uint8), work / "latents.pt")
except (OSError, RuntimeError):
    print("the writing failed")
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # from here on the kernel kills who writes more
training_scenes(4, side=32, seed=0, cache=work / "scenes.pt")
print("not killed")
"""


def test_what_a_run_died_saving_is_computed_again(directory, pixels, tmp_path):
    shutil.copytree(directory / "vae", tmp_path / "vae")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", DIES_WHILE_SAVING, str(tmp_path)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (died.returncode, died.stdout) == (-signal.SIGXFSZ, "the writing failed\n"), died.stderr
    vae, file = load_diffusion(directory)[0], tmp_path / "latents.pt"
    latents = kept_latents(vae, pixels, file)
    torch.testing.assert_close(latents, (encode_all(vae, pixels, mixed=True) * vae.config.scaling_factor).half())
    drawn = training_scenes(4, side=32, seed=0, cache=tmp_path / "scenes.pt")
    whole = training_scenes(4, side=32, seed=0, cache=tmp_path / "undisturbed" / "scenes.pt")
    assert torch.equal(drawn[0], whole[0]) and drawn[1:] == whole[1:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.pt", "scenes.pt", "undisturbed", "vae"]
    assert torch.equal(kept_latents(vae, pixels + 1, file), latents)  # read, not computed


def test_training_the_autoencoder_lowers_its_error(pixels, tmp_path):
    few = train_autoencoder(replace(VAE, steps=2, whole_steps=1), pixels, tmp_path / "few" / "vae")
    long = replace(VAE, steps=150, whole_steps=2, batch=8, average=0.5)
    more = train_autoencoder(long, pixels, tmp_path / "more" / "vae")
    error = [autoencoder.reconstruction_error(vae, pixels)["absolute_error"] for vae in (few, more)]
    assert error[1] < 0.9 * error[0]


def test_crops_are_parts_of_the_pictures(pixels):
    crops = random_crops(pixels[:1], 4, 20, torch.Generator().manual_seed(0))
    windows = as_input(pixels[:1])[0].unfold(1, 20, 1).unfold(2, 20, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for number, crop in enumerate(crops):
        crop = crop.flip(-1) if number % 2 == 0 else crop
        assert (windows == crop).flatten(1).all(1).any()


def test_a_cutout_is_a_part_of_its_scene_that_holds_the_whole_object():
    for index, (pixels, tags) in enumerate(CUTOUTS):
        scene = make_scene("train", index, size=(64, 64), seed=2, n_objects=1, scales=(0.24, 0.46))
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(scene.image).transpose(2, 0, 1), (3, 32, 32))[0]
        ((top, left),) = np.argwhere((windows == pixels).all((2, 3, 4)))
        x, y, width, height = scene.objects[0].box
        assert left <= x and x + width <= left + 32 and top <= y and y + height <= top + 32
        thing = scene.objects[0]
        assert listing_of_one(tags) == listing([(thing.colour, thing.category)], scene.texture, scene.ground)


def test_the_text_of_a_scene_lists_its_objects_and_background():
    for scene in SCENES:
        things = [(thing.colour, thing.category) for thing in scene.objects]
        assert listed(scene.caption) == listing(things, scene.texture, scene.ground)
        assert listed(scene.caption) in scene.caption


def test_noise_steps_count_by_their_signal_and_high_ones_are_drawn_more_often():
    from diffusers import DDIMScheduler

    from core.encoders.diffusion_config import SD15_SCHEDULER

    scheduler = DDIMScheduler(**SD15_SCHEDULER)
    weights = noise_weights(scheduler, 5.0)
    kept = scheduler.alphas_cumprod
    assert (weights[kept / (1 - kept) <= 5] == 1).all() and weights.argmin() == 0
    assert weights[0] == pytest.approx(5 * (1 - kept[0]) / kept[0])
    times = draw_times(UNET, scheduler, 4000, torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() <= 999
    assert times.float().mean() == pytest.approx(999.5 / (1 + UNET.time_power), rel=0.03)


def test_pictures_seen_are_counted_by_kind():
    recipe = replace(UNET, plain_steps=1, filled_steps=3, cutout_steps=2, cutout_batch=4, batch=2, steps=9)
    seen = [source_of(recipe, step) for step in range(9)]
    assert seen == ["plain", *["filled"] * 3, *["cutouts"] * 2, "scenes", "cutouts", "scenes"]
    assert pictures_seen(recipe, 9) == {"plain": 4, "filled": 12, "cutouts": 12, "scenes": 4}
    assert pictures_seen(recipe, 4) == {"plain": 4, "filled": 12, "cutouts": 0, "scenes": 0}


def test_the_average_follows_the_weights():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    average, expected = Average(module, 0.5), 1.0
    for step, value in enumerate((3.0, -2.0, 5.0), start=1):
        torch.nn.init.constant_(module.weight, value)
        average.follow(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.kept.weight.item() == pytest.approx(expected) and not average.kept.weight.requires_grad


def test_the_last_fit_of_the_autoencoder_leaves_the_encoder_as_it_is(pixels, tmp_path):
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=24, patch_size=12
        )
    )
    made = [
        train_autoencoder(replace(VAE, decoder_steps=steps), pixels, tmp_path / str(steps) / "vae", clip=tower)
        for steps in (0, 3)
    ]
    for part in ("encoder", "quant_conv"):
        pairs = zip(getattr(made[0], part).parameters(), getattr(made[1], part).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(made[0].decoder.conv_in.weight, made[1].decoder.conv_in.weight)
    assert made[0].config.scaling_factor == made[1].config.scaling_factor
    assert sorted(path.name for path in (tmp_path / "3").iterdir()) == ["vae"]


def test_diffusers_pipeline_runs_on_the_written_model(directory):
    from diffusers import StableDiffusionPipeline

    vae, unet, scheduler, tokenizer, text_encoder = load_diffusion(directory)
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=scheduler, tokenizer=tokenizer, text_encoder=text_encoder, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline(
        CAPTIONS[0], height=64, width=64, num_inference_steps=4, guidance_scale=3.0, generator=generator,
        output_type="pt",
    ).images  # fmt: skip
    ours = sample(directory, CAPTIONS[:1], steps=4, guidance=3.0, seed=5)
    assert ours.shape == (1, 3, 64, 64)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_denoising_knows_the_clean_latents_where_there_is_hardly_noise(directory, pixels):
    vae = load_diffusion(directory)[0]
    clean = encode_all(vae, pixels[:2]) * vae.config.scaling_factor
    noisy, predicted = denoise(directory, clean, CAPTIONS[:2], noise_step=0)
    assert (noisy - clean).abs().mean() < 0.05
    assert (predicted - clean).abs().mean() < 0.1
    later, _ = denoise(directory, clean, CAPTIONS[:2], noise_step=500)
    assert (later - clean).abs().mean() > 0.3


def test_text_tokenizer_keeps_words_whole_and_pads_like_clip():
    tokenizer = build_text_tokenizer(CAPTIONS, UNET)
    ids = text_ids(tokenizer, ["the image shows", "The Image Shows", ""])
    assert ids.shape == (3, 40) and torch.equal(ids[0], ids[1])
    assert tokenizer.convert_ids_to_tokens(ids[0, :5].tolist()) == [
        diffusion.START, "the</w>", "image</w>", "shows</w>", diffusion.END,
    ]  # fmt: skip
    assert set(ids[2, 1:].tolist()) == {tokenizer.eos_token_id}
    assert build_text_tokenizer(CAPTIONS, UNET).get_vocab() == tokenizer.get_vocab()


def test_the_encoder_of_difflmm_reads_what_was_trained(directory, pixels):
    encoder = DiffusionVisionModel.from_parts(
        directory, image_size=64, patch_size=16, implicit_captioner=False, concat_clip=False, positional_encoding=False
    )
    assert torch.allclose(encoder.empty_text, empty_text_embedding(directory))
    features = encoder(as_input(pixels[:2])).last_hidden_state
    assert features.shape == (2, 16, 32) and features.std() > 0


def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(folder, *, die=None):
        torch.manual_seed(0)
        line, kept = torch.nn.Linear(3, 2), []

        def loss(step):
            return line(torch.randn(5, 3, generator=step_generator(7, step))).square().mean()

        def after(step, value):
            kept.append((step, value))
            if step == die:
                raise KeyboardInterrupt

        state = tmp_path / folder / "state.pt"
        fit("line", {"line": line}, loss, Fit(9, 1e-2), state=state, after=after, save_every=2)
        assert not state.exists()
        return line, kept

    whole, losses = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", die=5)
    resumed, again = run("killed")
    assert again == losses[4:]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
