"""What a run would take, before it takes it: parameters, tokens, memory and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from core.checkpoints import load_structure
from core.training.cost import Cost, step_costs
from core.training.data import ConversationData, Sample, read_samples
from core.training.recipes import Recipe
from core.training.run import RunOptions, frozen_dtype, training_arguments
from core.training.stages import count_parameters, prepare_stage
from core.training.templates import IGNORE

SAMPLED = 1000  # samples that are tokenised; the rest is extrapolated
UTILISATION = 0.4  # share of the matrix-product rate that training reaches
GIB = 2**30


@dataclass(frozen=True)
class DryRun:
    """The numbers of a planned run; memory in bytes per device without sharding, time in seconds."""

    parameters: dict[str, tuple[int, int]]  # part: (trainable, frozen)
    samples: int
    text_only: int
    missing: tuple[str, ...]  # ids of records whose picture is no file
    tokens: int  # of one epoch, estimated from SAMPLED samples; visual ones included
    visual_tokens: int  # of one picture
    answer_tokens: int  # of one epoch, estimated; they carry the loss
    truncated: int  # of the sampled ones, longer than max_length
    steps: int
    memory: dict[str, int]
    flops: float  # of all devices
    seconds: float

    @property
    def trainable(self) -> int:
        """Number of parameters that learn."""
        return sum(pair[0] for pair in self.parameters.values())

    @property
    def frozen(self) -> int:
        """Number of parameters that do not."""
        return sum(pair[1] for pair in self.parameters.values())

    def __str__(self) -> str:
        rows = [f"{'part':<24}{'trainable':>16}{'frozen':>16}"]
        totals = {**self.parameters, "all": (self.trainable, self.frozen)}
        rows += [f"{part:<24}{learns:>16,}{rests:>16,}" for part, (learns, rests) in totals.items()]
        missing = f", {len(self.missing)} pictures missing" if self.missing else ""
        rows.append(f"samples: {self.samples:,} ({self.text_only:,} text only{missing})")
        rows.append(
            f"tokens per epoch: about {self.tokens:,}, {self.answer_tokens:,} of them learnt; "
            f"{self.visual_tokens} per picture; {self.truncated} sampled samples are cut"
        )
        rows.append(f"optimiser steps: {self.steps:,}")
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.memory.items())
        rows.append(f"memory per device, unsharded: about {sum(self.memory.values()) / GIB:.2f} GiB ({parts})")
        minutes = f"about {self.seconds / 60:.1f} minutes ({self.seconds / 3600:.2f} h)"
        return "\n".join([*rows, f"arithmetic: {self.flops:.3g} operations, {minutes}"])


def dry_run(
    model: str | Path,
    data: str | Path,
    *,
    recipe: Recipe,
    options: RunOptions | None = None,
    images: str | Path | None = None,
    rate: float | None = None,
) -> DryRun:
    """Count and estimate a stage without training it and without reading the model's weights.

    Parameters, samples, steps and missing pictures are exact; tokens are extrapolated from `SAMPLED` samples. The
    arithmetic is counted on the model's own code (`core.training.cost`), for every picture and for texts of mean
    length; time divides it by the devices' rate. Memory adds weights, gradients and Adam's moments of what learns to
    what a device batch keeps for the backward pass and the largest thing that passes.

    Args:
        model, data, recipe, options, images: as for `core.training.run.train`.
        rate: operations per second that one device reaches; None to time a matrix product on this machine.

    Raises:
        GroundingError: as for `train`, but for missing weights.
    """
    options = options or RunOptions()
    samples = read_samples(data, images)
    arguments = training_arguments(recipe, options, Path("unused"))
    dtype = frozen_dtype(recipe, options)
    network, processor = load_structure(model, dtype=dtype)
    network = prepare_stage(network, recipe)
    parameters = count_parameters(network)
    dataset = ConversationData(
        samples, processor, template=recipe.template, max_length=recipe.max_length, pad=recipe.pad
    )
    tokens, answers, truncated = count_tokens(dataset)
    epochs = recipe.epochs if options.max_steps < 0 else options.max_steps * recipe.batch / len(samples)
    steps = ceil(len(samples) * recipe.epochs / recipe.batch) if options.max_steps < 0 else options.max_steps
    pictures = sum(sample.image is not None for sample in samples)
    picture, text = step_costs(
        network,
        pixels=tuple(dataset.blank.shape),
        length=ceil(tokens / len(samples)),
        dtype=torch.bfloat16 if recipe.bf16 else torch.float32,
        checkpointing=options.gradient_checkpointing,
    )
    flops = epochs * (pictures * picture.operations + len(samples) * text.operations)
    rate = matrix_rate(options, recipe) * UTILISATION if rate is None else rate
    return DryRun(
        parameters=parameters,
        samples=len(samples),
        text_only=len(samples) - pictures,
        missing=tuple(one.id for one in samples if one.image is not None and not one.image.is_file()),
        tokens=tokens,
        visual_tokens=dataset.visual_tokens,
        answer_tokens=answers,
        truncated=truncated,
        steps=steps,
        memory=memory(
            parameters,
            picture,
            text,
            batch=arguments.per_device_train_batch_size,
            frozen_bytes=dtype.itemsize,
        ),
        flops=flops,
        seconds=flops / rate / arguments.world_size,
    )


def count_tokens(dataset: ConversationData) -> tuple[int, int, int]:
    """(tokens, answer tokens, cut samples): the first two for an epoch, the last among the samples looked at."""
    chosen: list[Sample] = dataset.samples[:: max(len(dataset) // SAMPLED, 1)]
    found = [dataset.tokens(sample, with_image=dataset.shows(sample)) for sample in chosen]
    scale = len(dataset) / len(chosen)
    total = sum(len(one.ids) for one in found)
    learnt = sum(int((one.labels[1:] != IGNORE).sum()) for one in found)
    return round(total * scale), round(learnt * scale), sum(len(one.ids) == dataset.max_length for one in found)


def memory(
    parameters: dict[str, tuple[int, int]], picture: Cost, text: Cost, *, batch: int, frozen_bytes: int
) -> dict[str, int]:
    """Bytes of weights, gradients, Adam's two moments and the activations of one device batch."""
    trainable, frozen = (sum(pair[place] for pair in parameters.values()) for place in (0, 1))
    return {
        "weights": trainable * 4 + frozen * frozen_bytes,
        "gradients": trainable * 4,
        "optimiser": trainable * 8,
        "activations": batch * (picture.saved + text.saved + max(picture.passing, text.passing)),
    }


def matrix_rate(options: RunOptions, recipe: Recipe) -> float:
    """Operations per second of a matrix product on this machine's device, in the recipe's arithmetic."""
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 1024
    matrix = torch.ones(side, side, device=device, dtype=torch.bfloat16 if recipe.bf16 else torch.float32)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
