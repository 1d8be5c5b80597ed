"""The two training stages: what is learnt, in which order, by which parameters, and that killed runs go on exactly."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from tiny_diffusion import tiny_diffusion, tiny_tower
from tiny_models import _llama, checkpointed, llama_tokenizer, tiny_llava
from tiny_training import tiny_difflmm, training_data

from core.errors import GroundingError
from core.images import pad_to_square
from core.training.collator import Collator
from core.training.data import ConversationData, read_samples
from core.training.loss_log import read_losses
from core.training.recipes import STAGES, stage_recipe
from core.training.run import RunOptions, last_checkpoint, make_collator, train
from core.training.sampling import EpochSampler, grouped_order
from core.training.templates import IGNORE, tokenize

ROOT = Path(__file__).parent.parent
TURNS = (("What is in this picture?", "A photo of a cat."), ("What is next to it?", "12 cups, a star"))
QUICK = {"batch": 4, "bf16": False}
HERE = RunOptions(device_batch=2, device="cpu", workers=0, save_every=2, progress=False, gradient_checkpointing=False)


@pytest.fixture(scope="module")
def tokenizer():
    return llama_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory, pictures):
    return training_data(tmp_path_factory.mktemp("data"), pictures)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of a tiny LLaVA on CLIP and of a tiny DiffLMM, with fast tokenizers."""
    root = tmp_path_factory.mktemp("models")
    return {"llava": tiny_llava(root / "llava"), "difflmm": tiny_difflmm(root)}


@pytest.fixture(scope="module")
def processor(models):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(models["llava"])


def learnt_texts(tokens, tokenizer):
    """Runs of consecutive learnt tokens, as text."""
    runs, before = [], False
    for token, label in zip(tokens.ids.tolist(), tokens.labels.tolist(), strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label != IGNORE
    return [tokenizer.decode(run) for run in runs]


def test_the_defaults_are_the_papers():
    first, second = STAGES[1], STAGES[2]
    assert (first.template, first.batch, first.learning_rate, first.lora_rank) == ("plain", 256, 1e-3, 0)
    assert (second.template, second.batch, second.learning_rate) == ("vicuna_v1", 128, 2e-4)
    assert (second.lora_rank, second.lora_alpha, second.visual_learning_rate) == (128, 256, 2e-5)
    assert second.group and second.pad and not first.pad and second.max_length == 2048
    for recipe in (first, second):
        assert (recipe.epochs, recipe.schedule, recipe.warmup, recipe.weight_decay) == (1, "cosine", 0.03, 0)
        assert recipe.bf16
    assert stage_recipe(2, batch=8).batch == 8 and STAGES[2].batch == 128


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (3, {}, "stages 1 and 2"),
        (1, {"rate": 1}, "has no rate"),
        (1, {"template": "x"}, "unknown template 'x'"),
        (1, {"batch": 0}, "batch must be positive"),
        (2, {"warmup": 3.0}, "warmup a share"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(stage, changes, message):
    with pytest.raises(GroundingError, match=message):
        stage_recipe(stage, **changes)


@pytest.mark.parametrize("visual", [0, 3])
def test_plain_learns_the_caption_and_its_line_break(tokenizer, visual):
    tokens = tokenize(TURNS, tokenizer, template="plain", visual_tokens=visual)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert tokens.ids.tolist()[: 1 + visual] == [tokenizer.bos_token_id, *[image] * visual]
    assert (tokens.labels[: 1 + visual] == IGNORE).all()
    assert torch.equal(tokens.labels[1 + visual :], tokens.ids[1 + visual :])
    assert tokenizer.decode(tokens.ids[1 + visual :]).strip() == "A photo of a cat."
    assert tokenizer.decode(tokens.ids).endswith("\n")


@pytest.mark.parametrize("visual", [0, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_vicuna_learns_every_answer_with_its_end(tokenizer, visual, count):
    tokens = tokenize(TURNS[:count], tokenizer, template="vicuna_v1", visual_tokens=visual)
    runs = learnt_texts(tokens, tokenizer)
    assert [run.strip() for run in runs] == [f"{answer}</s>" for _, answer in TURNS[:count]]
    assert tokens.labels[-1] == tokenizer.eos_token_id
    learnt = tokens.labels != IGNORE
    starts = [i for i in range(1, len(learnt)) if learnt[i] and not learnt[i - 1]]
    for start in starts:  # what is not learnt ends where generation begins
        assert tokenizer.decode(tokens.ids[:start]).endswith("ASSISTANT:")


def test_long_samples_are_cut(tokenizer):
    whole = tokenize(TURNS, tokenizer, template="vicuna_v1")
    cut = tokenize(TURNS, tokenizer, template="vicuna_v1", max_length=50)
    assert len(cut.ids) == 50 and torch.equal(cut.ids, whole.ids[:50]) and torch.equal(cut.labels, whole.labels[:50])


def test_records_are_read_as_llava_writes_them(data, pictures):
    samples = read_samples(data)
    assert len(samples) == 12 and sum(sample.image is None for sample in samples) == 4
    assert samples[1].turns[0][0] == "What is in this picture?" and len(samples[1].turns) == 2
    assert samples[0].image.is_file() and samples[0].id == "r0"


def test_the_scenes_are_training_data(tmp_path):
    from embedded.scenes.dataset import write_dataset

    write_dataset(tmp_path, n=2, size=(64, 80))
    samples = read_samples(tmp_path / "conversations.json")
    assert all(sample.image.is_file() and len(sample.turns) > 1 for sample in samples)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a", "conversations": [{"from": "gpt", "value": "x"}]}, "'a' has no question"),
        ({"id": "a", "conversations": [{"from": "human", "value": "x"}] * 2}, "'a': expected a text from 'gpt'"),
        ({"id": "a"}, "record 0 has no list of conversations"),
        ({"id": "a", "image": ["x", "y"], "conversations": []}, "one path per record"),
        (
            {"id": "a", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
            "without an image",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(tmp_path, record, message):
    (tmp_path / "data.json").write_text(json.dumps([record]))
    with pytest.raises(GroundingError, match=message):
        read_samples(tmp_path / "data.json")


def test_files_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(GroundingError, match="does not exist"):
        read_samples(tmp_path / "none.json")
    for content, message in (("{", "not JSON"), ("{}", "no list of records")):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(GroundingError, match=message):
            read_samples(tmp_path / "data.json")


@pytest.mark.parametrize("shape", ["landscape", "portrait", "square"])
def test_padding_is_the_geometry_that_is_mapped_back(models, pictures, shape):
    from core.families.llava import Llava
    from core.lmm import load_lmm

    lmm = load_lmm(models["llava"], device="cpu", geometry="pad")
    colour = tuple(int(channel * 255) for channel in lmm.processor.image_processor.image_mean)
    wanted = Llava(lmm.model, lmm.processor, geometry="pad").prepare(pictures[shape]).image
    assert np.array_equal(np.asarray(pad_to_square(pictures[shape], colour)), np.asarray(wanted))


@pytest.fixture()
def broken(tmp_path, data, pictures):
    """A copy of the data where r1's picture is missing and r3's is no picture."""
    records = json.loads(data.read_text())
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    records[1]["image"], records[3]["image"] = "gone.png", "noise.png"
    (tmp_path / "noise.png").write_bytes(b"no picture")
    (tmp_path / "data.json").write_text(json.dumps(records))
    return tmp_path / "data.json"


def test_unreadable_pictures_carry_no_loss_and_are_named(broken, processor, tmp_path, caplog):
    samples = read_samples(broken)
    dataset = ConversationData(samples, processor, template="vicuna_v1", skipped=tmp_path / "skipped.jsonl")
    items = [dataset[number] for number in range(4)]
    for number in (1, 3):
        assert items[number]["pixel_values"] is None and (items[number]["labels"] == IGNORE).all()
    for number in (0, 2):
        assert (items[number]["labels"] != IGNORE).any()
    noted = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [note["id"] for note in noted] == ["r1", "r3"] and "gone.png" in noted[0]["error"]
    assert "'r1' is skipped" in caplog.text and "does not exist" in caplog.text
    strict = ConversationData(samples, processor, template="vicuna_v1", missing="raise")
    with pytest.raises(GroundingError, match=r"record 'r1'.*gone\.png"):
        strict[1]
    with pytest.raises(GroundingError, match="unknown missing"):
        ConversationData(samples, processor, template="plain", missing="ignore")
    with pytest.raises(GroundingError, match="16 visual tokens, which do not fit into max_length 16"):
        ConversationData(samples, processor, template="plain", max_length=16)


def item(ids, picture=None):
    labels = torch.tensor([IGNORE, *ids[1:]])
    return {
        "input_ids": torch.tensor(ids),
        "labels": labels,
        "pixel_values": None if picture is None else torch.full((3, 2, 2), float(picture)),
    }


def test_batches_are_padded_on_the_right_with_pictures_in_order():
    collate = Collator(pad_id=0, image_id=9, visual_tokens=2, blank=torch.zeros(3, 2, 2))
    batch = collate([item([1, 9, 9, 5], 7), item([1, 4]), item([1, 9, 9], 8)])
    assert batch["input_ids"].tolist() == [[1, 9, 9, 5], [1, 4, 0, 0], [1, 9, 9, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 9, 9, 5], [IGNORE, 4, IGNORE, IGNORE], [IGNORE, 9, 9, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [7, 8]
    assert collate([item([1, 0, 3])])["attention_mask"][0, :3].tolist() == [1, 1, 1]  # a pad id inside is no padding


def test_the_blank_picture_of_text_only_batches_changes_nothing(models, processor, data):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(models["llava"])
    texts = [sample for sample in read_samples(data) if sample.image is None]
    dataset = ConversationData(texts, processor, template="vicuna_v1")
    batch = make_collator(dataset, model.config.image_token_id)([dataset[0], dataset[1]])
    loss = model(**batch).loss
    loss.backward()
    projector = model.model.multi_modal_projector
    assert all(weight.grad is not None and not weight.grad.any() for weight in projector.parameters())
    plain = [model(input_ids=dataset[n]["input_ids"][None], labels=dataset[n]["labels"][None]).loss for n in (0, 1)]
    counts = [(dataset[n]["labels"] != IGNORE).sum() for n in (0, 1)]
    torch.testing.assert_close(loss, sum(a * b for a, b in zip(plain, counts, strict=True)) / sum(counts))


@pytest.mark.parametrize(("pictures_count", "texts", "batch", "group"), [(37, 23, 4, 8), (3, 2, 4, 4), (16, 0, 4, 8)])
def test_groups_hold_one_modality(pictures_count, texts, batch, group):
    rng = np.random.default_rng(0)
    has_image = [True] * pictures_count + [False] * texts
    lengths = rng.integers(1, 1000, len(has_image)).tolist()
    order, same, other = (
        grouped_order(lengths, has_image, batch=batch, group=group, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert sorted(order) == list(range(len(has_image)))
    assert order == same and (order != other or len(order) < 2 * group)
    left = (pictures_count % group or group) + (texts % group or group) if texts else 0
    for start in range(0, len(order) - left, group):
        assert len({has_image[index] for index in order[start : start + group]}) == 1
    assert not texts or order[-left:] == sorted(order[-left:])


def test_epochs_differ_and_are_repeatable():
    sampler = EpochSampler(list(range(20)), [True] * 20, batch=2, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    sampler.set_epoch(0)
    assert list(sampler) == first and len(sampler) == 20


@pytest.fixture(scope="module")
def runs(models, data, tmp_path_factory):
    """Both stages of both models, three optimiser steps each: (start, recipe, result directory)."""
    found = {}
    for name, start in models.items():
        for stage in (1, 2):
            changes = {**QUICK, "learning_rate": 1e-2} | ({"lora_rank": 4} if stage == 2 else {})
            recipe = stage_recipe(stage, **changes)
            output = tmp_path_factory.mktemp(f"{name}_{stage}")
            found[name, stage] = (start, recipe, train(start, data, output, recipe=recipe, options=HERE))
    return found


@pytest.mark.parametrize("name", ["llava", "difflmm"])
@pytest.mark.parametrize("stage", [1, 2])
def test_what_learns_moves_and_the_rest_does_not(runs, name, stage):
    from transformers import AutoModelForImageTextToText

    start, _, result = runs[name, stage]
    before = AutoModelForImageTextToText.from_pretrained(start).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(result).state_dict()
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    visual = {key for key in before if ".multi_modal_projector." in key}
    visual |= {key for key in before if ".captioner." in key or key.startswith("model.vision_tower.positions")}
    assert len(visual) == (4 if name == "llava" else 9)
    linear = {key for key in before if ".language_model." in key and key.endswith("_proj.weight")}
    assert moved == visual | (linear if stage == 2 else set()) and len(linear) == 14


def test_a_run_leaves_a_model_that_grounds(runs, pictures):
    from core.lmm import load_lmm

    lmm = load_lmm(runs["difflmm", 2][2], device="cpu")
    found = lmm.generate(pictures["landscape"], "What is in this picture?", max_new_tokens=2)
    assert found.attention.shape[1] == 16
    assert lmm.model.config.get_text_config().use_cache


@pytest.mark.parametrize("name", ["llava", "difflmm"])
def test_merged_lora_equals_unmerged(models, data, name):
    from core.checkpoints import load_checkpoint
    from core.training.stages import finished_model, prepare_stage

    model, processor = load_checkpoint(models[name], device="cpu")
    tuned = prepare_stage(model, stage_recipe(2, lora_rank=4, lora_alpha=8)).eval().double()
    for weight_name, weight in tuned.named_parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(weight_name)))
    dataset = ConversationData(read_samples(data), processor, template="vicuna_v1")
    batch = make_collator(dataset, model.config.image_token_id)([dataset[0], dataset[1], dataset[2]])
    batch["pixel_values"] = batch["pixel_values"].double()
    with torch.no_grad():
        unmerged = tuned(**batch).logits
        merged = finished_model(tuned)(**batch).logits
    torch.testing.assert_close(merged, unmerged, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "difflmm"])
def test_a_tower_in_which_nothing_learns_keeps_no_graph(models, data, name):
    """With gradient checkpointing transformers would differentiate a frozen CLIP in every step."""
    from core.checkpoints import load_checkpoint
    from core.training.stages import prepare_stage

    model, processor = load_checkpoint(models[name], device="cpu")
    for _ in range(2):  # the second stage goes on from the first
        model = prepare_stage(model, stage_recipe(1)).train()
    checkpointed(model)
    seen = []
    model.model.vision_tower.register_forward_hook(lambda tower, given, out: seen.append(out.last_hidden_state))
    dataset = ConversationData(read_samples(data), processor, template="plain")
    batch = make_collator(dataset, model.config.image_token_id)([dataset[0], dataset[2]])
    model(**batch, use_cache=False).loss.backward()
    assert [hidden.requires_grad for hidden in seen] == [name == "difflmm"]
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    with pytest.raises((AttributeError, TypeError)):
        model.model.vision_tower(pixel_values=None)
    assert torch.is_grad_enabled()


def test_every_part_has_its_learning_rate(models):
    from core.checkpoints import load_checkpoint
    from core.training.stages import parameter_groups, prepare_stage

    model, _ = load_checkpoint(models["difflmm"], device="cpu")
    tuned = prepare_stage(model, stage_recipe(2, weight_decay=0.1))
    names = {id(weight): name for name, weight in tuned.named_parameters()}
    groups = parameter_groups(tuned, stage_recipe(2, weight_decay=0.1))
    assert {weight.requires_grad for group in groups for weight in group["params"]} == {True}
    assert sum(len(group["params"]) for group in groups) == sum(w.requires_grad for w in tuned.parameters())
    for group in groups:
        for weight in group["params"]:
            assert group["lr"] == (2e-4 if "lora_" in names[id(weight)] else 2e-5)
            assert group["weight_decay"] == (0.1 if weight.ndim == 2 else 0)


class Killed(Exception):
    """What ends a run in the middle of a step."""


def killer(step):
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **unused):
            if state.global_step == step:
                raise Killed

    return Kill()


@pytest.mark.parametrize(("name", "stage", "killed"), [("llava", 1, 5), ("difflmm", 2, 3), ("llava", 2, 4)])
def test_a_killed_run_goes_on_exactly(models, data, tmp_path, name, stage, killed):
    recipe = stage_recipe(stage, **QUICK, epochs=2.0, learning_rate=1e-2, **({"lora_rank": 4} if stage == 2 else {}))
    start = models[name]
    whole = train(start, data, tmp_path / "whole", recipe=recipe, options=HERE)
    with pytest.raises(Killed):
        train(start, data, tmp_path / "killed", recipe=recipe, options=HERE, callbacks=(killer(killed),))
    assert not (tmp_path / "killed" / "model").exists()
    assert last_checkpoint(tmp_path / "killed").endswith(f"checkpoint-{(killed - 1) // 2 * 2}")
    torch.manual_seed(99)  # nothing may hang on what the process did before
    resumed = train(start, data, tmp_path / "killed", recipe=recipe, options=HERE)
    losses, again = read_losses(tmp_path / "whole"), read_losses(tmp_path / "killed")
    assert [row["step"] for row in again] == [1, 2, 3, 4, 5, 6]
    assert again == losses
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_a_half_written_checkpoint_is_not_taken(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path).endswith("checkpoint-2")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path).endswith("checkpoint-10")


def test_checkpoints_hold_what_is_learnt_and_nothing_else_is_taken(runs, models):
    from safetensors import safe_open

    from core.checkpoints import load_checkpoint
    from core.training.export import load_learnt

    checkpoint = Path(last_checkpoint(runs["difflmm", 1][2].parent))
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 9
    with safe_open(Path(last_checkpoint(runs["difflmm", 2][2].parent)) / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 9 + 2 * 14
    model, _ = load_checkpoint(models["llava"], device="cpu")
    learnt = [name for name, _ in model.named_parameters() if "multi_modal_projector" in name]
    with pytest.raises(GroundingError, match="not what this model learns"):
        load_learnt(model, checkpoint, learnt)


def test_another_recipe_does_not_go_on_in_the_same_directory(runs, data):
    start, recipe, result = runs["llava", 1]
    with pytest.raises(GroundingError, match=r"learning_rate 0\.01 then, 0\.001 now"):
        train(start, data, result.parent, recipe=stage_recipe(1, **QUICK), options=HERE)
    assert recipe.learning_rate == 1e-2


def test_unreadable_pictures_do_not_stop_a_run_unless_asked(models, broken, tmp_path):
    recipe = stage_recipe(2, **QUICK, lora_rank=2)
    train(models["llava"], broken, tmp_path / "run", recipe=recipe, options=HERE)
    losses = [row["loss"] for row in read_losses(tmp_path / "run")]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert {json.loads(line)["id"] for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()} == {
        "r1",
        "r3",
    }
    strict = RunOptions(**{**vars(HERE), "missing": "raise"})
    with pytest.raises(GroundingError, match=r"record 'r[13]'"):
        train(models["llava"], broken, tmp_path / "strict", recipe=recipe, options=strict)


def test_a_step_of_unreadable_pictures_only_is_no_step_to_nan(models, tmp_path):
    turn = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": f"{n}.png", "conversations": turn} for n in range(4)]))
    result = train(
        models["llava"], tmp_path / "data.json", tmp_path / "run", recipe=stage_recipe(1, **QUICK), options=HERE
    )
    assert [row["loss"] for row in read_losses(tmp_path / "run")] == [0.0]
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(result)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_accumulation_checkpointing_and_bfloat16(models, data, tmp_path):
    first = {}
    for label, options, changes in (
        ("plain", {"device_batch": 4}, {}),
        ("accumulated", {"device_batch": 1}, {}),
        ("checkpointed", {"device_batch": 4, "gradient_checkpointing": True}, {}),
        ("bfloat16", {"device_batch": 4}, {"bf16": True}),
    ):
        recipe = stage_recipe(1, **{**QUICK, "learning_rate": 1e-2, "noise": "fixed"} | changes)
        where = RunOptions(**{**vars(HERE), "max_steps": 2, **options})
        train(models["difflmm"], data, tmp_path / label, recipe=recipe, options=where)
        first[label] = [row["loss"] for row in read_losses(tmp_path / label)]
    assert first["accumulated"] == pytest.approx(first["plain"], rel=1e-4)
    assert first["checkpointed"] == pytest.approx(first["plain"], rel=1e-4)
    assert first["bfloat16"] == pytest.approx(first["plain"], rel=2e-2) and first["bfloat16"] != first["plain"]
    with pytest.raises(GroundingError, match="batch of 4 cannot be divided into 3"):
        where = RunOptions(**{**vars(HERE), "device_batch": 3})
        train(models["llava"], data, tmp_path / "no", recipe=stage_recipe(1, **QUICK), options=where)


@pytest.mark.parametrize("name", ["llava", "difflmm"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_dry_run_counts_what_is_there(models, broken, name, stage):
    from core.checkpoints import load_checkpoint
    from core.training.budget import dry_run

    recipe = stage_recipe(stage, **QUICK)
    found = dry_run(models[name], broken, recipe=recipe, options=HERE, rate=1e9)
    model, processor = load_checkpoint(models[name], device="cpu")
    learnable = found.trainable if stage == 1 else found.trainable - found.parameters["lora"][0]
    assert found.frozen == sum(w.numel() for w in model.parameters()) - learnable
    text = model.model.language_model
    ranks = sum(
        128 * (part.in_features + part.out_features) for part in text.modules() if isinstance(part, torch.nn.Linear)
    )
    assert found.parameters.get("lora") == ((ranks, 0) if stage == 2 else None)
    projector = sum(w.numel() for w in model.model.multi_modal_projector.parameters())
    assert found.parameters["projector"] == (projector, 0)
    dataset = ConversationData(read_samples(broken), processor, template=recipe.template)
    tokens = [dataset.tokens(one, with_image=one.image is not None) for one in dataset.samples]
    assert found.tokens == sum(len(one.ids) for one in tokens)
    assert found.answer_tokens == sum(int((one.labels != IGNORE).sum()) for one in tokens)
    assert (found.samples, found.text_only, found.missing, found.steps) == (12, 4, ("r1",), 3)
    assert found.visual_tokens == 16 and found.seconds == pytest.approx(found.flops / 1e9)
    assert found.memory["optimiser"] == 8 * found.trainable
    for text in ("projector", "optimiser steps: 3", "1 pictures missing", "GiB"):
        assert text in str(found)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", ["llava", "difflmm"])
def test_costs_are_those_of_a_real_step(models, name, stage, checkpointing):
    """Operations of fake tensors, picture and text apart, equal those of the whole model on real ones."""
    from core.checkpoints import load_checkpoint, load_structure
    from core.training.cost import measure, step_costs
    from core.training.data import blank_image
    from core.training.stages import prepare_stage

    recipe = stage_recipe(stage, lora_rank=4 if stage == 2 else 0)
    structure, processor = load_structure(models[name], dtype=torch.float32)
    blank, visual = blank_image(processor)
    counted = {"pixels": tuple(blank.shape), "length": 60, "dtype": torch.float32, "checkpointing": checkpointing}
    structure = prepare_stage(structure, recipe)
    picture, text = step_costs(structure, **counted)
    assert step_costs(structure, **counted) == (picture, text)
    model = prepare_stage(load_checkpoint(models[name], device="cpu")[0], recipe)
    if checkpointing:
        checkpointed(model.get_base_model() if stage == 2 else model)
    ids = torch.full((1, 60), 300)
    ids[0, 1 : 1 + visual] = model.config.image_token_id
    batch = {"input_ids": ids, "labels": ids, "pixel_values": blank[None]}
    real = measure(model, lambda: model(**batch, use_cache=False).loss)
    assert picture.operations + text.operations == real.operations
    if not checkpointing:  # the real one keeps the embeddings in the place of their copy
        assert picture.saved + text.saved == pytest.approx(real.saved, rel=0.1)
    assert max(picture.passing, text.passing) >= real.passing


def test_a_unet_that_stops_early_costs_less(models, tmp_path):
    from core.checkpoints import load_structure
    from core.training.cost import step_costs
    from core.training.stages import prepare_stage

    found = []
    for block in (1, 2, 4):
        config = json.loads((models["difflmm"] / "config.json").read_text())
        config["vision_config"]["up_block"] = block
        for file in models["difflmm"].iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = prepare_stage(load_structure(tmp_path, dtype=torch.float32)[0], stage_recipe(1))
        picture, _ = step_costs(model, pixels=(3, 64, 64), length=20, dtype=torch.float32, checkpointing=False)
        found.append(picture.operations)
    assert found == sorted(set(found))


def test_checkpointing_runs_without_a_warning(models, data, tmp_path):
    import warnings

    options = RunOptions(**{**vars(HERE), "gradient_checkpointing": True, "max_steps": 1})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*checkpointing.*")
        train(models["llava"], data, tmp_path, recipe=stage_recipe(2, **QUICK, lora_rank=2), options=options)


def test_the_command_line_trains(models, data, tmp_path, capsys):
    from core.training.__main__ import main

    command = ["--model", str(models["llava"]), "--data", str(data), "--device", "cpu", "--workers", "0"]
    command += ["--no-progress", "--no-bf16", "--batch", "4", "--device-batch", "4"]
    assert main([*command, "--dry-run"]) == 0
    assert "optimiser steps: 3" in capsys.readouterr().out
    run = ["--output", str(tmp_path), "--stage", "2", "--lora-rank", "2", "--max-steps", "2"]
    assert main([*command, *run]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "model")
    assert main([*command, *run, "--epochs", "3"]) == 2
    assert "epochs 1.0 then, 3.0 now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--stage", "1"])
    assert "give --model, --data, --output" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [1, 2])
def test_what_a_sharded_run_leaves_is_merged(runs, stage, tmp_path):
    """An ended run's last checkpoint has the layout that `save_model` gathers sharded weights into."""
    import shutil

    from safetensors.torch import load_file

    from core.training.export import merge_sharded

    result = runs["difflmm", stage][2]
    with pytest.raises(GroundingError, match="nothing to merge"):
        merge_sharded(result.parent)
    shutil.copy(result.parent / "recipe.json", tmp_path)
    shutil.copytree(last_checkpoint(result.parent), tmp_path / "trained")
    merged = load_file(merge_sharded(tmp_path) / "model.safetensors")
    wanted = load_file(result / "model.safetensors")
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[key], wanted[key]) for key in wanted)


def test_weights_that_zero3_cut_are_left_to_deepspeed(models, runs):
    """Seen under DeepSpeed: cut weights are empty where the model reads a checkpoint, and all learn in one dtype."""
    from safetensors.torch import load_file

    from core.checkpoints import load_checkpoint
    from core.training.export import load_learnt
    from core.training.stages import prepare_stage

    model, _ = load_checkpoint(models["difflmm"], device="cpu")
    for weight in model.parameters():
        weight.ds_id, weight.ds_tensor, weight.data = 0, weight.data.bfloat16(), torch.empty(0, dtype=torch.bfloat16)
    _, recipe, result = runs["difflmm", 2]
    tuned = prepare_stage(model, recipe)
    learnt = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in learnt.values()} == {torch.bfloat16}
    checkpoint = Path(last_checkpoint(result.parent))
    load_learnt(tuned, checkpoint, list(learnt))
    stored = load_file(checkpoint / "model.safetensors")
    for name, weight in learnt.items():
        if "lora_" in name:
            torch.testing.assert_close(weight.detach(), stored[name].bfloat16())
        else:
            assert not weight.numel()


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_cluster_configurations_are_accelerates(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / f"{name}.yaml"))
    assert config.num_processes == 8
    if name.startswith("zero"):
        content = json.loads((ROOT / config.deepspeed_config["deepspeed_config_file"]).read_text())
        assert content["zero_optimization"]["stage"] == int(name[-1])
    if name == "fsdp":
        content = yaml.safe_load((ROOT / "configs" / "fsdp.yaml").read_text())["fsdp_config"]
        assert content["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # what `--merge` and resuming read


def test_repetitions_are_drawn_thin_beneath_their_mean(tmp_path):
    from analysis.training.losses import load_losses, plot_losses, reading

    for seed in (0, 1, 2):
        (tmp_path / str(seed)).mkdir()
        rows = [{"step": step, "loss": 9.0 if step == 1 else 1.0 + seed + 1 / step} for step in range(1, 41)]
        (tmp_path / str(seed) / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = load_losses({"three": [tmp_path / str(seed) for seed in (0, 1, 2)], "one": tmp_path / "0"})
    assert losses.groupby("run")["repetition"].nunique().to_dict() == {"three": 3, "one": 1}
    ax = plot_losses(losses, smoothing=0.0)
    mean, *single, alone = ax.get_lines()
    assert [line.get_label() for line in single] == [f"three, repetition {number}" for number in range(3)]
    assert np.allclose(mean.get_ydata(), np.mean([line.get_ydata() for line in single], axis=0))
    assert all(line.get_linewidth() < mean.get_linewidth() for line in single)
    assert np.allclose(alone.get_ydata(), single[0].get_ydata())
    assert ax.get_ylim()[1] < 6  # not the fall of the first step
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["three  2.025", "one  1.025"]
    assert reading(losses[losses["run"] == "one"]).startswith(
        "one: from 3.27 to 1.03 nats per answer token in 40 steps"
    )
    plt.close(ax.figure)


def test_losses_are_drawn_and_averaged(runs, tmp_path):
    from analysis.training.losses import converged_loss, load_losses, plot_losses

    directories = {f"stage {stage}": runs["llava", stage][2].parent for stage in (1, 2)}
    losses = load_losses(directories)
    assert losses.groupby("run")["step"].apply(list).to_dict() == {"stage 1": [1, 2, 3], "stage 2": [1, 2, 3]}
    _, ax = plt.subplots()
    assert plot_losses(losses, smoothing=0.0, ax=ax) is ax
    drawn = [line.get_ydata() for line in ax.get_lines()]
    for line, name in zip(drawn, directories, strict=True):
        assert np.allclose(line, losses[losses["run"] == name]["loss"])
    plt.close(ax.figure)
    _, ax = plt.subplots()
    first = plot_losses(losses, smoothing=0.5, ax=ax).get_lines()[0].get_ydata()
    values = losses[losses["run"] == "stage 1"]["loss"].to_numpy()
    assert first[0] == pytest.approx(values[0]) and first[1] == pytest.approx((values[0] + 2 * values[1]) / 3)
    plt.close(ax.figure)
    assert converged_loss(losses, share=0.67)["loss"].iloc[0] == pytest.approx(values[1:].mean())
    with pytest.raises(GroundingError, match="no loss log"):
        load_losses({"none": tmp_path})


def test_a_cut_last_line_of_the_log_is_left_out(tmp_path):
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_losses(tmp_path) == [{"step": 1, "loss": 2.0}]
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(GroundingError, match="line 1 of"):
        read_losses(tmp_path)


@pytest.mark.parametrize("kind", ["clip", "diffusion"])
def test_a_model_assembled_from_published_parts_begins_stage_1(kind, data, tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    from core.checkpoints import load_checkpoint
    from core.training.assemble import main

    words = llama_tokenizer()
    text = {key: value for key, value in _llama(len(words) - 1).items() if key != "model_type"}
    language = LlamaForCausalLM(LlamaConfig(**text))  # has no row for the image token yet
    language.save_pretrained(tmp_path / "llm")
    words.save_pretrained(tmp_path / "llm")
    parts = ["--clip", str(tiny_tower(tmp_path / "tower"))]
    if kind == "diffusion":
        parts += ["--diffusion", str(tiny_diffusion(tmp_path / "sd")), "--image-size", "64", "--up-block", "1"]
    command = ["--language-model", str(tmp_path / "llm"), *parts, "--output"]
    assert main([*command, str(tmp_path / "one")]) == main([*command, str(tmp_path / "two")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    model, _ = load_checkpoint(tmp_path / "one", device="cpu")
    for name, weight in language.model.state_dict().items():
        found = model.model.language_model.state_dict()[name]
        assert torch.equal(found[: len(weight)], weight)
    train(tmp_path / "one", data, tmp_path / "run", recipe=stage_recipe(1, **QUICK), options=HERE)
    losses = [row["loss"] for row in read_losses(tmp_path / "run")]
    assert len(losses) == 3 and losses[0] == pytest.approx(math.log(len(words)), rel=0.3)
    assert main(["--language-model", str(tmp_path / "none"), *parts, "--output", str(tmp_path / "x")]) == 2
    assert "language model could not be loaded" in capsys.readouterr().err


def test_what_learns_begins_anew_and_the_rest_stays(models, tmp_path):
    from core.checkpoints import load_checkpoint
    from core.training.assemble import main, write_start

    before = load_checkpoint(models["difflmm"], device="cpu")[0].state_dict()
    one, same, other = (
        load_checkpoint(write_start(tmp_path / name, model=str(models["difflmm"]), seed=seed), device="cpu")[
            0
        ].state_dict()
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    for states in ((one, before), (one, other)):
        moved = {key for key in one if not torch.equal(states[0][key], states[1][key])}
        assert len(moved) == 9
        assert all("multi_modal_projector" in key or "captioner" in key or "positions" in key for key in moved)
    with pytest.raises(GroundingError, match="give one of the two"):
        write_start(tmp_path / "none")
    with pytest.raises(GroundingError, match="noise_step are options of the diffusion encoder"):
        write_start(tmp_path / "none", language_model="x", clip="y", encoder={"noise_step": 3})
    assert main(["--model", str(models["llava"]), "--output", str(tmp_path / "shell")]) == 0
    assert (tmp_path / "shell" / "model.safetensors").is_file()


def training_settings(tmp_path, **changes):
    from analysis.training.settings import TrainingSettings

    return TrainingSettings(**{"output_dir": str(tmp_path / "out"), "n_images": 2} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": "3"}, "stages is '3'; choose one of both, 1, 2"),
        ({"parts": {"projector": "old"}}, "projector is 'old'"),
        ({"parts": {"dtype": "fp16"}}, "dtype is 'fp16'"),
        ({"parts": {"llm": "x"}}, "parts has no llm; it takes language_model, clip"),
        ({"data": {"stage1": "x"}}, "data has no stage1; it takes stage_1, stage_2, images"),
        ({"question": {"picture": "x"}}, "question has no picture; it takes image, prompt, max_new_tokens"),
        ({"n_images": 0}, "n_images is 0; give a number of scenes"),
        ({"stage_1": {"bath": 2}}, "a recipe has no bath"),
        ({"stage_2": {"learning_rate": "quick"}}, "stage_2: learning_rate is 'quick'; it must be a number"),
        ({"options": {"worker": 2}}, "options has no worker"),
        ({"output_dir": ""}, "output_dir is empty"),
    ],
)
def test_training_settings_that_cannot_be_used_are_refused(tmp_path, changes, message):
    with pytest.raises(GroundingError, match=message):
        training_settings(tmp_path, **changes)


def test_what_only_learnt_captions_is_asked_for_one(tmp_path):
    question = {"prompt": "What is it?"}
    settings = {stages: training_settings(tmp_path, stages=stages, question=question) for stages in ("1", "2", "both")}
    asked = {stages: each.asked["prompt"] for stages, each in settings.items()}
    assert asked == {"1": "", "2": "What is it?", "both": "What is it?"}


def test_shell_commands_are_the_notebooks_run(tmp_path):
    import shlex

    from analysis.training.settings import shell_commands
    from core.training.__main__ import _given, _parser
    from core.training.recipes import Recipe

    changes = {"batch": 8, "learning_rate": "1e-3", "bf16": False, "warmup": 0}
    options = {"workers": 0, "gradient_checkpointing": False, "device": "cpu"}
    settings = training_settings(tmp_path, stage_1=changes, stage_2=changes, options=options, seed=3)
    start, *stages = shell_commands(settings).splitlines()
    assert start.startswith("python -m core.training.assemble --model embedded --seed 3 --dtype float32 --output")
    for number, line in enumerate(stages, start=1):
        parsed = _parser().parse_args(shlex.split(line)[3:])
        assert stage_recipe(parsed.stage, **_given(parsed, Recipe)) == settings.recipe(number)
        assert RunOptions(**_given(parsed, RunOptions)) == settings.run_options()
        assert parsed.model == str(settings.path("records", "start" if number == 1 else "stage_1/model"))
        assert parsed.output == settings.run(number)
    sharded = shell_commands(settings, launcher="accelerate launch --config_file configs/fsdp.yaml").splitlines()
    assert [line.startswith("python -m core.training --merge") for line in sharded] == [False, False, True, False, True]
    given = {"model": "some/model", "parts": {"projector": "kept"}, "data": {"stage_1": "p", "stage_2": "t.json"}}
    kept = training_settings(tmp_path, stages="2", **given)
    assert shell_commands(kept).startswith(
        "python -m core.training --stage 2 --model some/model --data t.json --output"
    )


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_marked_text_is_what_is_learnt(data, processor, template):
    from analysis.training.samples import label_runs, samples_html

    dataset = ConversationData(read_samples(data), processor, template=template)
    for sample in dataset.samples:
        tokens = dataset.tokens(sample, with_image=sample.image is not None)
        pieces = label_runs(tokens, processor.tokenizer, processor.image_token)
        answers = [answer for _, answer in sample.turns][: 1 if template == "plain" else None]
        assert [text.strip().removesuffix("</s>") for text, learnt in pieces if learnt] == answers
        assert ("[16 visual tokens]", False) in pieces or sample.image is None
    page = samples_html(dataset, [0, 2])
    assert page.count("<mark>") == sum(len(dataset.samples[n].turns) if template == "vicuna_v1" else 1 for n in (0, 2))
    assert page.count("<img") == 1 and 'src="data:' in page
