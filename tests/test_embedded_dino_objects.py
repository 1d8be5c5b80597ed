"""Views of one object and the contrast between objects, by their laws."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from embedded.recipes.dino_contrast import encode_mosaic, encode_window, nt_xent, pool, wave_positions
from embedded.recipes.dino_model import DinoRecipe, build_encoder
from embedded.recipes.dino_objects import object_views, outline
from embedded.scenes.scenes import make_scene

STILL = {"loose": 0.0, "turn": 0.0, "stretch": 1.0, "own_colours": 1.0, "own_ground": 1.0}
RECIPE = DinoRecipe(image_size=48, width=32, layers=2, heads=2, object_size=24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    shown = partial(make_scene, "train", size=(64, 64), n_objects=1, scales=(0.4, 0.6))
    return [shown(number) for number in range(40)]


@pytest.fixture(scope="module")
def objects(scenes):
    return outline(torch.stack([torch.from_numpy(np.asarray(one.image).transpose(2, 0, 1).copy()) for one in scenes]))


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(RECIPE).eval()


def test_outline_finds_the_object_without_its_mask(scenes, objects):
    overlaps = []
    for scene, matte in zip(scenes, objects.matte[:, 0].numpy(), strict=True):
        found, mask = matte > 127, scene.objects[0].mask
        overlaps.append((found & mask).sum() / (found | mask).sum())
    assert np.median(overlaps) > 0.75


def test_boxes_are_those_of_the_matte():
    pixels = torch.full((1, 3, 64, 64), 150, dtype=torch.uint8)
    pixels[:, 0, 10:30, 24:56] = 255
    x, y, half = outline(pixels).box[0].tolist()
    assert (x, y, half) == pytest.approx((40 / 32 - 1, 20 / 32 - 1, 0.5), abs=0.04)
    plain = outline(torch.full((1, 3, 64, 64), 150, dtype=torch.uint8))
    assert plain.box[0].tolist() == [0, 0, 1] and plain.matte.max() < 128


@pytest.mark.parametrize("painted", [0.2, 1.0])
def test_views_keep_shape_and_range(objects, painted):
    views, matte = object_views(objects, 2, side=24, generator=generator(), painted=painted)
    assert views.shape == (80, 3, 24, 24) and matte.shape == (80, 1, 24, 24)
    assert min(views.min(), matte.min()) >= 0 and max(views.max(), matte.max()) <= 1
    again, _ = object_views(objects, 2, side=24, generator=generator(), painted=painted)
    assert torch.equal(views, again)


def test_colours_are_exchanged_and_the_shape_is_not(objects):
    views = partial(object_views, objects, 1, side=32)
    own, matte = views(generator=generator(), **STILL)
    other, same = views(generator=generator(), **{**STILL, "own_colours": 0.0})
    assert torch.equal(matte, same)
    area = matte.sum((2, 3))
    mean, changed = ((one * matte).sum((2, 3)) / area for one in (own, other))
    assert (torch.cdist(changed, mean).min(1).values < 0.1).float().mean() > 0.9  # each has the colour of some other
    assert ((changed - mean).norm(dim=1) > 0.2).float().mean() > 0.5
    beside = (matte < 1e-3).expand_as(own)
    assert torch.allclose(own[beside], other[beside], atol=2e-3)


def test_the_ground_is_exchanged_and_the_object_is_not(objects):
    own, matte = object_views(objects, 1, side=32, generator=generator(), **STILL)
    other, _ = object_views(objects, 1, side=32, generator=generator(), **{**STILL, "own_ground": 0.0})
    inside, beside = ((matte > 0.999).expand_as(own), (matte < 1e-3).expand_as(own))
    assert torch.allclose(own[inside], other[inside], atol=2e-3)
    assert (own - other)[beside].abs().mean() > 0.05


def test_nt_xent_is_the_mean_over_views_of_the_partner_among_all_others():
    rows = torch.randn(6, 5, generator=generator())
    total = 0.0
    for one in range(6):
        scores = {k: float(F.cosine_similarity(rows[one], rows[k], dim=0)) / 0.2 for k in range(6) if k != one}
        total -= scores[(one + 3) % 6] - math.log(sum(math.exp(score) for score in scores.values()))
    assert float(nt_xent(rows, 0.2)) == pytest.approx(total / 6, rel=1e-5)
    assert float(nt_xent(torch.eye(3).repeat(2, 1), 0.05)) < 1e-6


def test_pooling_asks_the_cells_of_the_object():
    features, matte = torch.arange(4.0).view(1, 4, 1), torch.zeros(1, 1, 24, 24)
    assert float(pool(features, matte)) == pytest.approx(1.5)
    matte[..., 12:, :12] = 1
    assert float(pool(features, matte)) == pytest.approx(2.0, abs=0.01)


@torch.no_grad()
def test_a_window_as_large_as_the_grid_is_the_models_own_pass(encoder):
    pixels = torch.randn(2, 3, 48, 48, generator=generator())
    assert torch.allclose(encode_window(encoder, pixels, 0, 0), encoder(pixels).last_hidden_state[:, 1:], atol=1e-5)
    assert not torch.allclose(
        encode_window(encoder, pixels[..., :24, :24], 0, 0), encode_window(encoder, pixels[..., :24, :24], 1, 2)
    )


@torch.no_grad()
def test_a_mosaic_gives_each_small_picture_its_own_cells(encoder):
    pixels, order = torch.randn(8, 3, 24, 24, generator=generator()), torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    features = encode_mosaic(encoder, pixels, order)
    top = torch.cat([pixels[5], pixels[2]], dim=-1)
    whole = torch.cat([top, torch.cat([pixels[7], pixels[0]], dim=-1)], dim=-2)
    grid = encoder(whole[None]).last_hidden_state[0, 1:].view(4, 4, -1)
    assert torch.allclose(features[2], grid[:2, 2:].flatten(0, 1), atol=1e-5)
    assert torch.allclose(features[7], grid[2:, :2].flatten(0, 1), atol=1e-5)


def test_positions_start_as_waves_that_tell_cells_apart():
    waves = wave_positions(32, 4, amplitude=0.4)
    assert waves.shape == (16, 32) and waves.abs().max() <= 0.4
    assert torch.cdist(waves, waves)[~torch.eye(16, dtype=torch.bool)].min() > 0.1
    assert torch.equal(build_encoder(RECIPE).embeddings.position_embeddings[0, 1:], waves)
