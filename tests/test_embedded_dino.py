"""The DINO recipe at a size of seconds: views, heads and losses by their laws, training that resumes, a fair probe."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from core.encoders.combined import combine
from core.errors import GroundingError
from embedded.recipes import dino
from embedded.recipes.dino import Trainer, pretrain
from embedded.recipes.dino_heads import PrototypeHead, assign, cross_entropy, entropies, picture_loss
from embedded.recipes.dino_model import DinoRecipe, Learner, build_encoder
from embedded.recipes.dino_objects import outline
from embedded.recipes.dino_probe import MIXED, OFF, cell_labels, figure, linear_accuracy, measure, patch_features
from embedded.recipes.dino_views import random_crops, random_masks, standardise
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.pictures import render_cutout
from embedded.scenes.scenes import COLOURS, make_scene

RECIPE = DinoRecipe(
    image_size=48, patch_size=12, width=32, layers=2, heads=2, scene_side=64, scenes=16, cutouts=24,
    cutout_side=32, object_size=24, object_steps=2, object_batch=8, mosaic_steps=2, prototypes=24, hidden=32,
    bottleneck=16, steps=6, batch=4, save_every=2,
)  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("dino") / "scenes.pt"


def learn(recipe, output, cache):
    return pretrain(recipe, output, pixels_cache=cache, cutouts_cache=cache.with_name("cutouts.pt"))


@pytest.fixture(scope="module")
def trained(cache):
    directory = cache.parent / "whole"
    return learn(RECIPE, directory, cache), directory


@pytest.fixture
def pixels():
    return torch.randint(256, (RECIPE.scenes, 3, 64, 64), generator=generator(), dtype=torch.uint8)


@pytest.fixture
def objects():
    drawn = [render_cutout(number, side=64, seed=2)[0] for number in range(12)]
    return outline(torch.stack([torch.from_numpy(one.copy()) for one in drawn]))


def test_whole_crops_without_jitter_are_the_picture_or_its_mirror():
    unit = torch.rand(12, 3, 20, 20, generator=generator())
    crops = random_crops(unit, 2, side=20, area=(1.0, 1.0), generator=generator(), stretch=1.0, jitter=0.0, grey=0.0)
    whole = standardise(unit)
    for view in crops:
        same = [torch.allclose(crop, one, atol=1e-4) for crop, one in zip(view, whole, strict=True)]
        mirrored = [torch.allclose(crop, one.flip(-1), atol=1e-4) for crop, one in zip(view, whole, strict=True)]
        assert any(same) and any(mirrored) and all(a != b for a, b in zip(same, mirrored, strict=True))


def ramps(size):
    """Pictures that rise from 0 to 1 along x, and along y: a crop's values tell where it stands."""
    height, width = size
    along_x = ((torch.arange(width) + 0.5) / width).expand(64, 3, height, width)
    along_y = ((torch.arange(height) + 0.5) / height)[:, None].expand(64, 3, height, width)
    return along_x, along_y


def reach(unit, **options):
    """Lowest and highest value of each crop of 40 pixels a side, at its edges instead of its outer pixels' centres."""
    crop = random_crops(unit, 1, side=40, generator=generator(3), jitter=0.0, grey=0.0, **options)[0, :, 0]
    values = (crop * 0.229 + 0.485)[:, 5:-5, 5:-5]  # away from the borders, where the ramp may be reflected
    low, high = values.amin((-2, -1)), values.amax((-2, -1))
    cell = (high - low) / 29
    return low - 5.5 * cell, high + 5.5 * cell


@pytest.mark.parametrize("size", [(30, 50), (50, 30)])
def test_crops_show_a_share_of_the_picture(size):
    (left, right), (top, bottom) = (reach(ramp, area=(0.2, 0.4)) for ramp in ramps(size))
    shown = (right - left) * (bottom - top)
    assert shown.min() > 0.2 - 0.02 and shown.max() < 0.4 + 0.02 and shown.std() > 0.03
    assert min(left.min(), top.min()) > -0.02 and max(right.max(), bottom.max()) < 1.02
    stretched = (right - left) / (bottom - top)
    assert stretched.min() > 1 / 1.27 and stretched.max() < 1.27 and stretched.std() > 0.05


def test_jitter_keeps_the_hue_of_a_plain_colour():
    plain = (torch.tensor([200, 60, 40]) / 255).view(1, 3, 1, 1).expand(32, 3, 16, 16)
    crops = random_crops(plain, 2, side=8, area=(0.5, 1.0), generator=generator(), jitter=0.2, grey=0.25).flatten(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    red, green, blue = ((crops * std + mean)[..., 0, 0] * 255).T
    grey = (red - blue).abs() < 0.1
    assert 4 <= grey.sum() <= 28 and red.std() > 5
    assert torch.allclose(((green - blue) / (red - blue))[~grey], torch.tensor(20 / 160), atol=0.02)


def test_masks_hide_the_share_asked_for_in_blobs():
    masks = random_masks(400, grid=10, share=(0.2, 0.4), generator=generator())
    shares = masks.float().mean(1)
    assert shares.min() >= 0.2 - 0.005 and shares.max() <= 0.4 + 0.005 and 0.28 < shares.mean() < 0.32
    assert masks.float().mean(0).min() > 0.2 and masks.float().mean(0).max() < 0.4  # no cell is preferred much
    square = masks.unflatten(1, (10, 10))
    both = (square[:, :, 1:] & square[:, :, :-1]).float().mean()
    assert both > 1.5 * shares.square().mean()  # neighbours are hidden together more often than by chance
    assert random_masks(3, grid=2, share=(0.0, 0.0), generator=generator()).sum(1).tolist() == [1, 1, 1]
    assert random_masks(3, grid=2, share=(1.0, 1.0), generator=generator()).sum(1).tolist() == [3, 3, 3]


def test_head_gives_cosines_whatever_the_length_of_its_prototypes():
    head = PrototypeHead(8, hidden=16, bottleneck=4, prototypes=5)
    features = torch.randn(7, 8)
    cosines = head(features)
    assert cosines.shape == (7, 5) and cosines.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes.mul_(torch.rand(5, 1) + 0.5)
    assert torch.allclose(head(features), cosines, atol=1e-6)


def test_assignments_use_every_prototype_equally_and_are_sharp():
    favoured = torch.randn(64, 4, generator=generator()) * 0.2 + torch.tensor([0.5, 0.0, 0.0, 0.0])
    assigned = assign(favoured, 0.1, rounds=50)
    assert torch.allclose(assigned.sum(1), torch.ones(64)) and torch.allclose(assigned.mean(0), torch.full((4,), 0.25))
    assert (favoured / 0.1).softmax(-1).mean(0)[0] > 0.7  # without it the favourite takes nearly all
    three = assign(favoured, 0.1)
    assert torch.allclose(three.sum(1), torch.ones(64)) and (three.mean(0) - 0.25).abs().max() < 0.03
    assert entropies(assign(favoured, 0.02))[1] < entropies(three)[1]


def test_assignments_are_the_published_iteration():
    """The iteration as DINOv2's `sinkhorn_knopp_teacher` writes it down, on one process."""
    cosines = torch.rand(10, 6, generator=generator()) * 0.4
    q = torch.exp(cosines / 0.05).t()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True)
        q /= 6
        q /= q.sum(dim=0, keepdim=True)
        q /= 10
    assert torch.allclose(assign(cosines, 0.05), (q * 10).t(), atol=1e-6)


def test_entropies_tell_the_two_ways_of_collapse():
    one = torch.eye(8)[torch.zeros(32, dtype=torch.long)]
    assert entropies(one) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert entropies(torch.full((32, 8), 1 / 8)) == pytest.approx((math.log(8),) * 2, abs=1e-5)
    assert entropies(torch.eye(8)) == pytest.approx((math.log(8), 0.0), abs=1e-5)


def test_picture_loss_is_the_mean_over_pairs_of_unlike_views():
    targets = torch.randn(2, 3, 6, generator=generator()).softmax(-1)
    cosines = torch.randn(4, 3, 6, generator=generator(1))
    total, pairs = 0.0, 0
    for a in range(2):
        for b in range(4):
            if a == b:
                continue
            for row in range(3):
                logarithm = torch.log(torch.softmax(cosines[b, row] / 0.1, -1))
                total, pairs = total - float((targets[a, row] * logarithm).sum()), pairs + 1
    assert float(picture_loss(targets, cosines, 0.1)) == pytest.approx(total / pairs, rel=1e-5)
    aligned = 0.1 * targets[0].log()
    assert torch.allclose(cross_entropy(targets[0], aligned, 0.1), torch.special.entr(targets[0]).sum(-1), atol=1e-5)


def test_views_depend_on_seed_and_step_alone(pixels):
    trainer = Trainer(RECIPE, Learner(RECIPE))
    first, again, other = trainer.views(3, pixels), trainer.views(3, pixels), trainer.views(4, pixels)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    reseeded = Trainer(replace(RECIPE, seed=1), Learner(RECIPE))
    assert not torch.equal(first[0], reseeded.views(3, pixels)[0])


def test_scenes_come_last_and_objects_always(pixels, objects):
    trainer = Trainer(RECIPE, Learner(RECIPE))
    signs = [trainer.step(number, pixels, objects) for number in range(6)]
    assert all(one[0] > 0 for one in signs)
    assert all(not any(one[1:]) for one in signs[:4]) and all(min(one[1:3]) > 0 for one in signs[4:])


def test_crops_of_a_picture_stand_one_batch_apart():
    plain = torch.arange(0, 16 * 15, 15, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 3, 64, 64)
    flat = partial(dino.random_crops, jitter=0.0)
    for step in (4, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dino, "random_crops", flat)
            large, small, _ = Trainer(RECIPE, Learner(RECIPE)).views(step, plain)
        first, second = large.mean((1, 2, 3)).chunk(2)
        assert torch.allclose(first, second, atol=1e-4) and first.std() > 0.1
        assert torch.allclose(torch.cat([first, second]), small.mean((1, 2, 3)), atol=1e-4)


def test_the_teacher_is_the_slow_average_of_the_student(pixels, objects):
    trainer = Trainer(RECIPE, Learner(RECIPE))
    before = trainer.teacher.picture_head.prototypes.clone()
    trainer.step(5, pixels, objects)
    rest = (1 - RECIPE.momentum) * 0.5 * (1 + math.cos(math.pi * 5 / 6))
    now, student = trainer.teacher.picture_head.prototypes, trainer.student.picture_head.prototypes
    assert torch.allclose(now, before + rest * (student - before), atol=1e-7)
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    held = trainer.teacher.picture_head.prototypes.clone()
    trainer._follow(RECIPE.steps)
    assert torch.equal(trainer.teacher.picture_head.prototypes, held)  # at the end it stands still


def test_both_losses_fall_and_nothing_collapses(trained, cache, objects):
    pixels = torch.load(cache, weights_only=True)["pixels"]
    recipe = replace(
        RECIPE, steps=80, batch=8, object_steps=0, mosaic_steps=0, learning_rate=1e-3, momentum=0.99, positions=0.02
    )
    trainer = Trainer(recipe, Learner(recipe))
    signs = torch.tensor([trainer.step(number, pixels, objects)[1:] for number in range(60)])
    start, end, nothing_known = signs[:10].mean(0), signs[-10:].mean(0), math.log(recipe.prototypes)
    assert end[0] < start[0] - 0.3 and end[1] < start[1] - 0.3
    assert end[0] < nothing_known - 0.03 and end[1] < nothing_known - 0.2
    mean, own, cells_mean, cells_own = end[2:].tolist()
    assert mean > own + 0.2 and cells_mean > cells_own + 0.5  # the assignments differ from one another
    assert min(mean, cells_mean) > 0.9 * nothing_known  # and every prototype is used


def test_what_is_written_loads_and_names_no_path(trained):
    from transformers import Dinov2Model

    model, directory = trained
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((directory / "config.json").read_text())
    assert str(directory) not in json.dumps(config) and "_name_or_path" not in config
    loaded = Dinov2Model.from_pretrained(directory).eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    start = build_encoder(RECIPE).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in loaded.state_dict().items())


def test_killed_training_ends_where_the_whole_one_does(trained, cache, tmp_path, monkeypatch):
    real = Trainer.step

    def killed(self, number, *data):
        if number == 3:
            raise KeyboardInterrupt
        return real(self, number, *data)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(RECIPE, tmp_path, cache)
    assert (tmp_path / "training_state.tmp.pt").is_file()
    with pytest.raises(GroundingError, match=r"learning_rate .* then, 0\.005 now"):
        learn(replace(RECIPE, learning_rate=5e-3), tmp_path, cache)
    done = []
    monkeypatch.setattr(Trainer, "step", lambda self, number, *data: done.append(number) or real(self, number, *data))
    resumed = learn(RECIPE, tmp_path, cache)
    assert done == [2, 3, 4, 5] and not (tmp_path / "training_state.tmp.pt").exists()
    whole = trained[0].state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.state_dict().items())


def test_progress_names_losses_and_entropies(cache, tmp_path, monkeypatch, caplog):
    values = (4.5, 1.25, 2.5, 3.0, 0.5, 2.0, 0.75)
    monkeypatch.setattr(Trainer, "step", lambda self, number, *data: values)
    with caplog.at_level("INFO", logger=dino.__name__):
        learn(replace(RECIPE, steps=100, save_every=1000), tmp_path, cache)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "step 100 of 100" in lines[1]
    assert (
        "objects 4.500, class token 1.250, hidden cells 2.500" in lines[1]
        and "pictures 3.00, 0.50, cells 2.00, 0.75" in lines[1]
    )


def test_sizes_must_be_whole_cells():
    with pytest.raises(GroundingError, match="image_size 60 is no multiple of twice the patch size 12"):
        build_encoder(replace(RECIPE, image_size=60))
    with pytest.raises(GroundingError, match="object_size 30 is no multiple of the patch size 12"):
        build_encoder(replace(RECIPE, object_size=30))
    build_encoder(replace(RECIPE, object_size=36))


def test_mosaics_need_an_even_number_of_objects():
    recipe = replace(RECIPE, object_batch=7)
    with pytest.raises(GroundingError, match="object_batch 7 is odd"):
        Trainer(recipe, Learner(recipe))


def test_features_are_those_of_the_comparison_encoder(trained):
    """The combined encoder gives DINO its own normalisation, which training used."""
    from core.encoders.normalisation import CLIP_MEAN, CLIP_STD

    model, _ = trained
    pixels = torch.randint(256, (2, 3, 48, 48), generator=generator(), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    combined = combine(model, image_size=48, patch_size=12)
    expected = combined((pixels.float() / 255 - mean) / std).last_hidden_state
    assert torch.allclose(patch_features(model, pixels), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 144), (144, 96)])
def test_cell_labels_are_the_masks_on_the_padded_square(size):
    scene, grid = make_scene("val", 3, size=size), 12
    labels = cell_labels(scene, grid).reshape(grid, grid, 2)
    offset = [(144 - side) // 2 for side in size]
    seen = set()
    for row in range(grid):
        for column in range(grid):
            top, left = row * 12 - offset[0], column * 12 - offset[1]
            inside = [
                thing.mask[max(0, top) : max(0, top + 12), max(0, left) : max(0, left + 12)].sum() / 144
                for thing in scene.objects
            ]
            best = int(np.argmax(inside))
            thing = scene.objects[best]
            word = (CATEGORIES.index(thing.category), list(COLOURS).index(thing.colour))
            beside = OFF if sum(inside) < 0.02 else MIXED
            expected = word if inside[best] > 0.5 else (beside, beside)
            assert tuple(labels[row, column]) == expected
            seen.add(expected)
    assert {(OFF, OFF), (MIXED, MIXED)} < seen


def test_figure_and_ground_leave_the_mixed_cells_out():
    labels = torch.tensor([[[3, 1], [OFF, OFF], [MIXED, MIXED], [0, 0]]])
    assert figure(labels).tolist() == [[1, 0, MIXED, 1]]


def test_linear_probe_finds_what_is_there_and_nothing_else():
    labels = torch.randint(3, (600,), generator=generator())
    noise = torch.randn(600, 5, generator=generator(1))
    told = noise + 6 * torch.eye(5)[labels]
    fitted, held = slice(0, 400), slice(400, 600)
    assert linear_accuracy(told[fitted], labels[fitted], told[held], labels[held]) > 0.97
    assert linear_accuracy(noise[fitted], labels[fitted], noise[held], labels[held]) < 0.45


def test_measure_reports_against_chance_and_an_untrained_model(trained):
    model, _ = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probes = measure(model, scenes=12)
    assert set(probes) == {"category", "colour", "object"}
    for probe in probes.values():
        assert 0 <= probe.accuracy <= 1 and 0 <= probe.untrained <= 1 and 0 < probe.chance < 1 and probe.cells > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert measure(model, scenes=12) == probes
    with pytest.raises(GroundingError, match="too few"):
        measure(model, scenes=3)
