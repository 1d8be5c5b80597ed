"""The two stages follow LLaVA's public scripts: pictures, groups, clipping, means of the loss, noise."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import HERE, QUICK, Killed, killer
from tiny_models import tiny_llava
from tiny_training import tiny_difflmm, training_data

from core.errors import GroundingError
from core.training.data import ConversationData, read_samples
from core.training.loss_log import read_losses
from core.training.recipes import RECIPES, STAGES, stage_recipe
from core.training.run import RunOptions, last_checkpoint, make_collator, train, training_arguments
from core.training.sampling import EpochSampler, grouped_order
from core.training.templates import IGNORE
from core.training.trainer import loss_divisors

PUBLIC = {  # LLaVA's scripts/v1_5/pretrain.sh and finetune_lora.sh on their eight devices, zero2.json, zero3.json
    1: {
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "seed": 42,
        "bf16": True,
    },
}
PUBLIC[2] = PUBLIC[1] | {"per_device_train_batch_size": 16, "learning_rate": 2e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory, pictures):
    return training_data(tmp_path_factory.mktemp("data"), pictures)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A tiny LLaVA with CLIP's own processor, which crops, and a DiffLMM as `assemble` leaves it, which pads."""
    root = tmp_path_factory.mktemp("starts")
    return {"llava": tiny_llava(root / "llava"), "difflmm": tiny_difflmm(root)}


# recipes


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_the_public_scripts(stage, name, tmp_path):
    recipe = stage_recipe(stage, name)
    options = RunOptions(device="cpu", device_batch=recipe.loss_batch)
    found = training_arguments(recipe, options, tmp_path)
    wanted = PUBLIC[stage] if name == "llava_1_5" else PUBLIC[stage] | {"seed": 0}
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert found.gradient_accumulation_steps == 8  # the public eight devices, one after the other
    assert found.optim.startswith("adamw_torch")
    assert [found.get_warmup_steps(steps) for steps in (2181, 5197)] == [66, 156]
    assert recipe.pad == recipe.group == (stage == 2) and recipe.noise == "fresh"
    assert recipe.template == ("plain", "vicuna_v1")[stage - 1] and recipe.max_length == 2048
    assert (recipe.lora_rank, recipe.visual_learning_rate) == ((0, None), (128, 2e-5))[stage - 1]
    assert recipe.lora_alpha == 256 and recipe.lora_dropout == 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": -1.0}, "clip_norm is at least 0"),
        ({"noise": "new"}, "unknown noise 'new'; use one of fresh, fixed"),
        ({"loss_batch": 3, "batch": 8}, "batch 8 is no multiple of loss_batch 3"),
        ({"loss_batch": -1}, "loss_batch is at least 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(GroundingError, match=message):
        stage_recipe(1, **changes)
    with pytest.raises(GroundingError, match=r"unknown recipe 'llava'; use one of paper, llava_1_5"):
        stage_recipe(1, "llava")


def test_a_recipe_is_named_in_the_shell(tmp_path):
    from analysis.training.settings import TrainingSettings, shell_commands
    from core.training.__main__ import _given, _parser, _recipe
    from core.training.recipes import Recipe

    changes = {"recipe": "llava_1_5", "batch": 8, "loss_batch": 4}
    settings = TrainingSettings(output_dir=str(tmp_path), n_images=2, stage_1=changes, stage_2=changes, seed=42)
    lines = shell_commands(settings).splitlines()[1:]
    for stage, line in enumerate(lines, start=1):
        assert f"--stage {stage} --recipe llava_1_5 --model" in line and "--seed" not in line
        parsed = _parser().parse_args(shlex.split(line)[3:])
        assert _recipe(parsed) == settings.recipe(stage) == stage_recipe(stage, "llava_1_5", batch=8, loss_batch=4)
        assert _given(parsed, Recipe) == {"batch": 8, "loss_batch": 4}
    with pytest.raises(GroundingError, match="unknown recipe 'x'"):
        TrainingSettings(output_dir=str(tmp_path), n_images=2, stage_1={"recipe": "x"})


# pictures


def plain_square(image, mean):
    """The picture in the middle of a square of the mean colour."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(channel * 255) for channel in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return Image.fromarray(square)


def plain_crop(image, side):
    """What CLIP's processor shows: the shorter edge at `side`, bicubic, and the middle of the longer one."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), float)


def seen(processor, pixels):
    """Pixel values as 0..255 again, [H, W, 3]."""
    mean, std = (np.array(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    return (pixels.permute(1, 2, 0).numpy() * std + mean) * 255


@pytest.mark.parametrize("shape", ["landscape", "portrait", "square"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", ["llava", "difflmm"])
def test_pictures_are_the_public_scripts(starts, pictures, tmp_path, name, stage, shape):
    """Whatever the start's processor does; one grey level is what two ways of resizing differ by."""
    from transformers import AutoProcessor

    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    pictures[shape].save(tmp_path / "one.png")
    (tmp_path / "data.json").write_text(json.dumps([{"image": "one.png", "conversations": turns}]))
    processor = AutoProcessor.from_pretrained(starts[name])
    before = processor.image_processor.to_dict()
    recipe = stage_recipe(stage)
    dataset = ConversationData(
        read_samples(tmp_path / "data.json"), processor, template=recipe.template, pad=recipe.pad
    )
    side, mean = {"llava": 56, "difflmm": 64}[name], processor.image_processor.image_mean
    wanted = plain_crop(plain_square(pictures[shape], mean) if stage == 2 else pictures[shape], side)
    found = seen(processor, dataset[0]["pixel_values"])
    assert np.abs(found - wanted).max() < 1.6 and np.abs(found - wanted).mean() < 0.3
    assert processor.image_processor.to_dict() == before


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", ["llava", "difflmm"])
def test_a_checkpoint_sees_pictures_as_its_stage_did(starts, data, pictures, tmp_path, name, stage):
    """LLaVA evaluates with the `image_aspect_ratio` that the last stage wrote into the model's configuration."""
    import shutil

    from core.lmm import load_lmm
    from core.training.export import merge_sharded

    recipe = stage_recipe(stage, **QUICK, **({"lora_rank": 2} if stage == 2 else {}))
    options = RunOptions(**{**vars(HERE), "max_steps": 1, "save_every": 1})
    result = train(starts[name], data, tmp_path / "run", recipe=recipe, options=options)
    shutil.copytree(last_checkpoint(tmp_path / "run"), tmp_path / "run" / "trained")
    for directory in (result, merge_sharded(tmp_path / "run")):
        lmm = load_lmm(directory, device="cpu")
        side, mean = lmm.processor.image_processor.crop_size["height"], lmm.processor.image_processor.image_mean
        for shape in ("landscape", "portrait"):
            image = pictures[shape]
            inputs = dict(lmm.processor(images=[image], text=["<image>"], return_tensors="pt"))
            wanted = plain_crop(plain_square(image, mean) if stage == 2 else image, side)
            assert np.abs(seen(lmm.processor, inputs["pixel_values"][0]) - wanted).max() < 1.6
            view = lmm.family.views(inputs, 0, (side // lmm.family.patch) ** 2, lmm.family.prepare(image))[0]
            x0, y0, x1, y1 = view.box
            covered = max(image.size) if stage == 2 else min(image.size)
            assert x1 - x0 == pytest.approx(covered, rel=0.02) and y1 - y0 == pytest.approx(covered, rel=0.02)


# groups


def plain_groups(lengths, has_image, *, devices, per_device, seed):
    """Steps of one modality, each dealt to the devices so that these have about as much to read."""
    torch.manual_seed(seed)
    steps = {}
    for kind in (True, False):
        members = [number for number, image in enumerate(has_image) if image == kind]
        if not members:
            continue
        mixed = [members[place] for place in torch.randperm(len(members))]
        steps[kind] = []
        while mixed:
            step, mixed = mixed[: devices * per_device], mixed[devices * per_device :]
            step = sorted(step, key=lambda number: -lengths[number])
            hands = [[] for _ in range(devices)]
            for turn, number in enumerate(step):
                if len(step) % devices:
                    hands[turn % devices].append(number)
                else:
                    free = [hand for hand in hands if len(hand) < len(step) // devices]
                    min(free, key=lambda hand: sum(lengths[one] for one in hand)).append(number)
            steps[kind].append([number for hand in hands for number in hand])
    if len(steps) == 1:
        return [number for step in next(iter(steps.values())) for number in step]
    whole = steps[True][:-1] + steps[False][:-1]
    order = [whole[place] for place in torch.randperm(len(whole))]
    return [number for step in order for number in step] + sorted(steps[True][-1] + steps[False][-1])


@pytest.mark.parametrize(("count", "texts"), [(300, 0), (0, 77), (256, 64), (205, 93), (5, 200), (1, 1)])
@pytest.mark.parametrize(("devices", "per_device"), [(8, 4), (1, 16), (4, 1)])
def test_groups_are_dealt_as_the_public_sampler_deals_them(count, texts, devices, per_device):
    rng = np.random.default_rng(count)
    has_image = rng.permutation([True] * count + [False] * texts).tolist()
    lengths = (rng.lognormal(4, 1, len(has_image)).astype(int) + 1).tolist()
    generator = torch.Generator().manual_seed(5)
    found = grouped_order(lengths, has_image, batch=per_device, group=devices * per_device, generator=generator)
    assert found == plain_groups(lengths, has_image, devices=devices, per_device=per_device, seed=5)


def test_steps_have_about_as_many_words_as_each_other():
    """Sorting the lengths of many steps together made steps of long answers and steps of short ones."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4, 1, 12_800).astype(int) + 1
    sampler = EpochSampler(lengths.tolist(), [True] * len(lengths), batch=16, group=128, seed=0)
    words = lengths[np.array(list(sampler))].reshape(-1, 128).mean(1)
    drawn = rng.permutation(lengths).reshape(-1, 128).mean(1)
    assert words.std() < 1.5 * drawn.std()


def test_the_mark_of_the_picture_is_a_word_as_in_the_public_sampler(data):
    records = json.loads(data.read_text())
    words = [sum(len(part["value"].split()) for part in record["conversations"]) for record in records]
    assert [sample.length for sample in read_samples(data)] == words


# the loss and its gradient


def first_moments(run):
    """Norm of AdamW's first moments after one step: a tenth of the gradient's."""
    state = torch.load(Path(last_checkpoint(run)) / "optimizer.pt", weights_only=True)["state"]
    return math.sqrt(sum(float(one["exp_avg"].square().sum()) for one in state.values()))


def test_gradients_are_not_clipped_unless_asked(starts, data, tmp_path):
    options = RunOptions(**{**vars(HERE), "max_steps": 1, "save_every": 1})
    for name, changes in {"public": {}, "clipped": {"clip_norm": 1e-3}}.items():
        recipe = stage_recipe(1, **QUICK, warmup=0.0, **changes)
        train(starts["llava"], data, tmp_path / name, recipe=recipe, options=options)
    norms = [read_losses(tmp_path / name)[0]["grad_norm"] for name in ("public", "clipped")]
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 0.1
    assert first_moments(tmp_path / "public") == pytest.approx(0.1 * norms[0], rel=1e-4)
    assert first_moments(tmp_path / "clipped") == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_takes_the_recipes_clipping(stage):
    """ "auto" takes the trainer's own value, 0 too; a number would override it, and nothing is 1 in a new DeepSpeed."""
    content = json.loads((Path(__file__).parent.parent / "configs" / f"deepspeed_zero{stage + 1}.json").read_text())
    assert content["gradient_clipping"] == "auto"


def plain_loss(model, batches):
    """Mean over the batches of the mean over each one's answer tokens."""
    losses = []
    for batch in batches:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
        learnt = batch["labels"][:, 1:] != IGNORE
        losses.append(-logits.log_softmax(-1)[learnt].gather(1, batch["labels"][:, 1:][learnt][:, None]).mean())
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("loss_batch", [0, 1, 2, 4])
def test_the_loss_is_the_mean_of_the_means(starts, data, tmp_path, loss_batch):
    """LLaVA's loss is a mean for each device batch and over these; ours does not depend on how a step is divided."""
    from core.checkpoints import load_checkpoint

    recipe = stage_recipe(1, **QUICK, template="vicuna_v1", loss_batch=loss_batch)
    for device_batch in [size for size in (1, 2, 4) if not loss_batch or size <= loss_batch]:
        options = RunOptions(**{**vars(HERE), "device_batch": device_batch, "max_steps": 1})
        train(starts["llava"], data, tmp_path / str(device_batch), recipe=recipe, options=options)
    samples = read_samples(data)
    model, processor = load_checkpoint(starts["llava"], device="cpu")
    dataset = ConversationData(samples, processor, template="vicuna_v1", pad=False)
    order = list(EpochSampler([one.length for one in samples], [True] * 12, batch=4, seed=recipe.seed))[:4]
    collate = make_collator(dataset, model.config.image_token_id)
    size = loss_batch or 4
    batches = [collate([dataset[number] for number in order[first : first + size]]) for first in range(0, 4, size)]
    with torch.no_grad():
        wanted = plain_loss(model, batches)
    found = [read_losses(folder)[0]["loss"] for folder in sorted(tmp_path.iterdir())]
    assert found == pytest.approx([wanted] * len(found), rel=1e-4)


def test_means_of_a_step_over_devices():
    """Answer tokens of each device batch, in the order of the samples."""
    counts = torch.tensor([3, 5, 0, 0, 2, 7, 1])
    assert loss_divisors(counts, batches=2).tolist() == [32, 32, 0, 0, 36, 36, 4]
    assert loss_divisors(counts, batches=7).tolist() == [18] * 7
    assert loss_divisors(counts, batches=1).tolist() == [21, 35, 0, 0, 14, 49, 7]


def test_a_mean_that_the_devices_cannot_share_is_refused(tmp_path):
    recipe = stage_recipe(1, batch=24, loss_batch=8)
    with pytest.raises(GroundingError, match="mean over 8 samples cannot be divided into 6"):
        training_arguments(recipe, RunOptions(device="cpu", device_batch=6), tmp_path)
    assert training_arguments(recipe, RunOptions(device="cpu"), tmp_path).per_device_train_batch_size == 8


# noise and positions


def test_noise_is_fresh_in_training_and_seeded_elsewhere(starts, pictures):
    from core.checkpoints import load_checkpoint
    from core.training.stages import prepare_stage

    model, processor = load_checkpoint(starts["difflmm"], device="cpu")
    pixels = processor.image_processor([pictures["landscape"]] * 2, return_tensors="pt")["pixel_values"]
    tower = model.model.vision_tower

    def features():
        with torch.no_grad():
            return tower(pixels).last_hidden_state

    seeded = features()
    torch.testing.assert_close(seeded[0], seeded[1])
    prepare_stage(model, stage_recipe(1)).train()
    torch.manual_seed(1)
    first, second = features(), features()
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first, second)
    assert not torch.allclose(first[0], seeded[0])
    torch.manual_seed(1)
    torch.testing.assert_close(features(), first)
    torch.testing.assert_close(model.eval().model.vision_tower(pixels).last_hidden_state, seeded)
    prepare_stage(model, stage_recipe(1, noise="fixed")).train()
    torch.testing.assert_close(features(), seeded)


@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_fresh_noise_is_that_of_the_scheduler(starts, latents):
    """Standard normal maps, one for each picture: the noised latents' spread is the scheduler's."""
    from core.checkpoints import load_checkpoint

    model, _ = load_checkpoint(starts["difflmm"], device="cpu")
    tower = model.model.vision_tower
    tower.config.latents, tower.config.noise_step, tower.config.noises = latents, 900, 2
    tower.fresh_noise = True
    tower.train()
    noisy = tower.encode_frozen(torch.zeros(64, 3, 64, 64))["noisy"]
    assert noisy.shape == (64, 2, 4, 8, 8)
    kept = float(tower.scheduler.alphas_cumprod[900])
    spread = (noisy - noisy.mean((0, 1))).std()
    assert spread == pytest.approx(math.sqrt(1 - kept), rel=0.05)


@pytest.mark.parametrize(("stage", "noise"), [(1, "fresh"), (2, "fresh"), (2, "fixed")])
def test_a_killed_run_goes_on_with_the_same_noise_and_groups(starts, data, tmp_path, stage, noise):
    lora = {"lora_rank": 2} if stage == 2 else {}
    recipe = stage_recipe(stage, **QUICK, **lora, noise=noise, group=True, loss_batch=4, epochs=2.0)
    whole = train(starts["difflmm"], data, tmp_path / "whole", recipe=recipe, options=HERE)
    with pytest.raises(Killed):
        train(starts["difflmm"], data, tmp_path / "killed", recipe=recipe, options=HERE, callbacks=(killer(3),))
    torch.manual_seed(7)
    resumed = train(starts["difflmm"], data, tmp_path / "killed", recipe=recipe, options=HERE)
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "killed")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_positions_begin_as_wide_as_asked(starts, tmp_path):
    from core.checkpoints import load_checkpoint
    from core.encoders.released import compat_options
    from core.training.assemble import main

    parent = starts["difflmm"].parent
    start = ["--model", str(starts["difflmm"])]
    for name, options, std in (("ours", [], 0.02), ("released", ["--positions-std", "1"], 1.0)):
        assert main([*start, *options, "--output", str(tmp_path / name)]) == 0
        tower = load_checkpoint(tmp_path / name, device="cpu")[0].model.vision_tower
        assert float(tower.positions.weight.detach().std()) == pytest.approx(std, rel=0.1)
    assert compat_options({}, width=64)["positions_std"] == 1.0
    from core.training.assemble import load_encoder

    encoder = load_encoder(
        str(parent / "tower"), str(parent / "sd"), image_size=64, up_block=1, positions_std=1.0, caption_positions=True
    )
    for part in (encoder.positions, encoder.captioner.positions):
        assert float(part.weight.detach().std()) == pytest.approx(1.0, rel=0.1)


def test_a_model_that_begins_anew_keeps_its_encoder(starts, tmp_path):
    from core.training.assemble import write_start

    with pytest.raises(GroundingError, match="noise_step belong to an encoder put together from parts"):
        write_start(tmp_path / "none", model=str(starts["difflmm"]), encoder={"noise_step": 3})


def test_the_stages_are_those_of_the_paper():
    assert STAGES is RECIPES["paper"]
