"""One stage from a checkpoint and a JSON file to the next checkpoint, resumable at any time."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from core.checkpoints import load_checkpoint
from core.claim import claim, hold
from core.errors import GroundingError
from core.prompts import adopt_template
from core.training.collator import Collator
from core.training.data import ConversationData, read_samples
from core.training.export import save_result
from core.training.loss_log import FILE
from core.training.recipes import Recipe
from core.training.sampling import EpochSampler
from core.training.stages import prepare_stage
from core.training.trainer import build_trainer

STATE = "trainer_state.json"  # the last file of a complete checkpoint


@dataclass(frozen=True)
class RunOptions:
    """Where and how a stage runs; nothing here changes what is learnt, apart from rounding and the random draws of
    dropout and fresh noise.
    """

    device_batch: int = 16  # samples per device and forward pass at most; the rest of a step is accumulated
    device: str = "auto"  # or "cpu"
    gradient_checkpointing: bool = True  # less memory, a third more time
    workers: int = 4  # processes that read pictures; 0 reads in this one
    missing: str = "skip"  # unreadable pictures: "skip" and note them, or "raise"
    save_every: int = 500  # optimiser steps between checkpoints
    keep: int = 2  # checkpoints kept
    log_every: int = 1  # optimiser steps between rows of the loss log
    max_steps: int = -1  # end early, for a try; -1: the recipe's epochs
    progress: bool = True  # progress bar


def train(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    recipe: Recipe,
    options: RunOptions | None = None,
    images: str | Path | None = None,
    callbacks: tuple = (),
) -> Path:
    """Train one stage, or go on with it after the last complete checkpoint in `output`.

    Args:
        model: checkpoint of LLaVA with its processor: directory, hub id or "embedded".
        data: LLaVA-format JSON.
        output: directory of the run; it gets `recipe.json`, `losses.jsonl`, `skipped.jsonl` (if any),
            `checkpoint-<step>` and, at the end, `model`.
        recipe: from `core.training.recipes.stage_recipe`.
        options: see `RunOptions`.
        images: folder of the pictures; see `core.training.data.read_samples`.
        callbacks: further `transformers.TrainerCallback`s.

    Returns:
        The directory `output/model`, which `load_lmm` and the next stage read; its processor has the recipe's chat
        template and brings pictures to a square as this stage did. After a run with sharded weights (FSDP, ZeRO-3)
        `core.training.export.merge_sharded` makes it.

    Raises:
        GroundingError: unreadable model or data; a batch that cannot be divided; `output` holds a run with another
            recipe, model or data, or another process trains there; with missing="raise", an unreadable picture.

    Source: paper section 4.1 (LLaVA-1.5's recipe).
    """
    options, output = options or RunOptions(), Path(output)
    samples = read_samples(data, images)
    arguments = training_arguments(recipe, options, output)
    settings = {"model": str(model), "data": str(data), "recipe": asdict(recipe), "max_steps": options.max_steps}
    output.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    claim(output / "recipe.json", settings, rank=rank)
    with hold(output, rank=rank):
        network, processor = load_checkpoint(model, device="cpu", dtype=frozen_dtype(recipe, options))
        torch.manual_seed(recipe.seed)
        network = prepare_stage(network, recipe)
        network.config.get_text_config().use_cache = False
        adopt_template(processor, recipe.template)
        dataset = ConversationData(
            samples,
            processor,
            template=recipe.template,
            max_length=recipe.max_length,
            pad=recipe.pad,
            missing=options.missing,
            skipped=output / "skipped.jsonl",
        )
        sampler = EpochSampler(
            [sample.length for sample in samples],
            [sample.image is not None for sample in samples],
            batch=recipe.mean_over if recipe.loss_batch else arguments.per_device_train_batch_size,
            group=recipe.batch if recipe.group else None,
            seed=recipe.seed,
        )
        checkpoint = last_checkpoint(output)
        trainer = build_trainer(
            network,
            arguments,
            data=dataset,
            collator=make_collator(dataset, network.config.image_token_id),
            sampler=sampler,
            recipe=recipe,
            losses=output / FILE,
            checkpoint=checkpoint,
            progress=options.progress,
        )
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=checkpoint)
        return save_result(trainer, dataset.processor, output)


def training_arguments(recipe: Recipe, options: RunOptions, output: Path) -> Any:
    """`transformers.TrainingArguments` of a recipe on the devices at hand.

    Raises:
        GroundingError: the batch, or what of it shares one mean of the loss, is no multiple of what the devices take at
            once.
    """
    from transformers import TrainingArguments

    world = int(os.environ.get("WORLD_SIZE", "1"))
    device_batch = min(options.device_batch, max(recipe.batch // world, 1), recipe.mean_over)
    if recipe.batch % (device_batch * world):
        raise GroundingError(
            f"a batch of {recipe.batch} cannot be divided into {device_batch} samples on each of {world} devices; "
            "change device_batch or the recipe's batch"
        )
    if recipe.loss_batch and recipe.mean_over % device_batch:
        raise GroundingError(
            f"a mean over {recipe.mean_over} samples cannot be divided into {device_batch} on a device; change "
            "device_batch or the recipe's loss_batch"
        )
    known = TrainingArguments.__dataclass_fields__
    name = (
        "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    )  # its old name
    checkpointing: dict[str, Any] = {}
    if options.gradient_checkpointing:
        checkpointing = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=recipe.batch // (device_batch * world),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip_norm,
        num_train_epochs=recipe.epochs,
        max_steps=options.max_steps,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        bf16=recipe.bf16,
        seed=recipe.seed,
        use_cpu=options.device == "cpu",
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=options.device != "cpu" and torch.cuda.is_available(),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=options.keep,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # the trainer's callback has a bar of its own
        report_to="none",
        **checkpointing,
    )


def make_collator(dataset: ConversationData, image_id: int) -> Collator:
    """The collator for a dataset's processor."""
    tokenizer = dataset.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Collator(pad_id=pad, image_id=image_id, visual_tokens=dataset.visual_tokens, blank=dataset.blank)


def frozen_dtype(recipe: Recipe, options: RunOptions) -> torch.dtype:
    """bfloat16 for frozen weights on an accelerator; float32 on a CPU, and under FSDP, which wants one dtype."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    fast = options.device != "cpu" and torch.cuda.is_available()
    return torch.bfloat16 if recipe.bf16 and fast and not sharded else torch.float32


def last_checkpoint(output: Path) -> str | None:
    """The latest complete checkpoint in a run's directory; one that was being written when the run died is not."""
    found = [path.parent for path in output.glob(f"checkpoint-*/{STATE}") if path.stat().st_size]
    found = [path for path in found if path.name.rpartition("-")[2].isdigit()]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None
