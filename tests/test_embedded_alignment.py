"""Shapes that teach themselves, and the alignment of a U-Net's features with them: laws, resuming, what it does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from embedded.recipes import shapes
from embedded.recipes.alignment import Alignment, whiten
from embedded.recipes.diffusion import DiffusionRecipe, Latents, train_diffusion
from embedded.recipes.dino_contrast import nt_xent
from embedded.recipes.fitting import fit
from embedded.recipes.shapes import CELL, ShapeEncoder, ShapeRecipe, shape_cells, train_shapes
from embedded.scenes.pictures import render_cutout

SHAPES = ShapeRecipe(channels=(8, 8, 16, 16), bottleneck=8, batch=8, steps=4)
UNET = DiffusionRecipe(
    channels=(16, 16, 32, 32), heads=2, text_width=16, text_layers=1, vocabulary=400, cutout_batch=4, plain_steps=1,
    filled_steps=1, cutout_steps=1, aligned_from=1, batch=2, steps=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    return torch.from_numpy(np.stack([render_cutout(number, side=64, seed=2)[0] for number in range(16)]))


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=20, in_channels=4, out_channels=4, block_out_channels=[16, 16, 32, 32], norm_num_groups=16,
        cross_attention_dim=16, attention_head_dim=2, layers_per_block=1,
    )  # fmt: skip


def test_whitened_cells_have_no_mean_and_unit_uncorrelated_channels():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    drawn = [torch.randn(50, 6, side, side, generator=generator) for side in (4, 10)]
    kinds = [torch.einsum("nchw,cd->ndhw", one, mixing) + 3 for one in drawn]
    white = whiten(*kinds)
    rows = torch.cat([one.float().permute(0, 2, 3, 1).flatten(0, 2) for one in white])
    assert [one.shape for one in white] == [one.shape for one in kinds]
    assert rows.mean(0).abs().max() < 0.01
    assert (torch.cov(rows.T) - torch.eye(6)).abs().max() < 0.02


def test_a_channel_without_variance_is_not_blown_up():
    features = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    features[:, 2] = 1 + 1e-6 * features[:, 1]
    (white,) = whiten(features)
    assert white.isfinite().all() and white.abs().max() < 100


def test_the_cosine_is_that_of_the_blocks_own_output(unet):
    aligned = Alignment(unet, up_block=2, width=5)
    kept = []
    handle = unet.up_blocks[1].register_forward_hook(lambda block, inputs, output: kept.append(output))
    noisy, words = torch.randn(3, 4, 8, 8), torch.randn(3, 7, 16)
    unet(noisy, torch.tensor([5, 500, 900]), encoder_hidden_states=words)
    handle.remove()
    weights = torch.tensor([1.0, 0.5, 0.0])
    projected = aligned.projection(kept[0])
    assert projected.shape == (3, 5, 4, 4)
    assert aligned(projected.detach(), weights).item() == pytest.approx(-0.5, abs=1e-6)
    assert aligned(-3 * projected.detach(), weights).item() == pytest.approx(0.5, abs=1e-6)
    assert aligned(torch.randn(3, 5, 4, 4), torch.zeros(3)).item() == 0


def test_scenes_are_aligned_cell_by_cell(unet):
    aligned = Alignment(unet, up_block=2, width=5)
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            unet(torch.randn(1, 4, 20, 20), 10, encoder_hidden_states=torch.randn(1, 7, 16))
        value = aligned(torch.randn(1, 5, 10, 10), torch.ones(1))
        assert value.ndim == 0 and value.dtype == torch.float32


def test_a_cell_of_the_shape_encoder_covers_sixteen_pixels(pictures):
    encoder = ShapeEncoder(SHAPES).eval()
    cells = shape_cells(encoder, pictures)
    assert cells.shape == (16, 16, 64 // CELL, 64 // CELL) and cells.dtype == torch.float16
    wide = torch.cat([pictures[:2], pictures[2:4]], dim=3)
    assert shape_cells(encoder, wide).shape == (2, 16, 4, 8)


def test_shapes_are_learnt_once_and_read_again(pictures, tmp_path):
    first = train_shapes(SHAPES, pictures, tmp_path)
    again = train_shapes(SHAPES, pictures, tmp_path)
    assert torch.equal(shape_cells(first, pictures), shape_cells(again, pictures))
    assert not torch.equal(shape_cells(first, pictures), shape_cells(ShapeEncoder(SHAPES), pictures))
    assert [file.name for file in tmp_path.iterdir()] == ["shapes.pt"]


def test_two_views_of_an_object_are_told_from_others_better_and_better(pictures, tmp_path, monkeypatch):
    values = []

    def watched(projected, temperature):
        values.append(nt_xent(projected, temperature))
        return values[-1]

    alike = {"painting_share": 0.01, "loosening_share": 0.01}  # from the first step on equally hard
    monkeypatch.setattr(shapes, "nt_xent", watched)
    train_shapes(replace(SHAPES, channels=(16, 32, 48, 64), batch=16, steps=80, **alike), pictures, tmp_path)
    first, last = (torch.stack(part).mean().item() for part in (values[:10], values[-10:]))
    assert first == pytest.approx(math.log(31), abs=0.7) and last < first - 0.2


def test_a_killed_aligned_training_goes_on_to_the_same_weights(tmp_path):
    generator = torch.Generator().manual_seed(0)
    texts = ["a red star on a plain gray background", "a blue moon on a dotted teal background"] * 4
    small = Latents(torch.randn(8, 4, 4, 4, generator=generator), texts, torch.randn(8, 5, 2, 2, generator=generator))
    scenes = Latents(torch.randn(8, 4, 8, 8, generator=generator), texts, torch.randn(8, 5, 4, 4, generator=generator))
    sources = {"plain": small._replace(targets=None), "filled": small, "cutouts": small, "scenes": scenes}

    def run(folder, *, die=None, recipe=UNET):
        def measure(step, parts):
            if step == die:
                raise KeyboardInterrupt

        train_diffusion(recipe, sources, tmp_path / folder, measure=measure)
        return UNet2DConditionModel.from_pretrained(tmp_path / folder / "unet").state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedded.recipes.diffusion.fit", lambda *args, **options: fit(*args, **options, save_every=2))
        whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("killed", die=5)
        resumed = run("killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    without = run("without", recipe=replace(UNET, aligned_from=99))
    assert not all(torch.equal(whole[name], without[name]) for name in whole)
