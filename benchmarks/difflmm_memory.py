"""Memory: what the paper's scale needs of an accelerator, and what each run takes beyond what stays between runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from difflmm_models import Pair, build, visual_tokens
from measure import FRESH_MEMORY, peak_memory

from core.errors import GroundingError

GIB = 2**30


def require_accelerator(options: argparse.Namespace) -> None:
    """Refuses to build 7B models where they cannot run.

    Raises:
        GroundingError: no CUDA device, or too little free memory on it.
    """
    needed = needed_bytes(options) / GIB
    wish = f"--scale paper needs an accelerator with about {needed:.0f} GiB of free memory at these batches"
    other = "; run --scale encoder or --flops, which need none"
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        raise GroundingError(f"{wish}, but the device is {options.device!r} and CUDA is not available to it{other}")
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < needed:
        raise GroundingError(f"{wish}, but {free:.0f} GiB are free; lower --stage-1-batch and --stage-2-batch{other}")


def needed_bytes(options: argparse.Namespace) -> int:
    """Estimated peak of the second stage, the hungrier one: shared weights, both adapters, one step's activations."""
    from difflmm_tasks import recipe_of

    from core.training.budget import memory
    from core.training.cost import step_costs
    from core.training.stages import count_parameters, prepare_stage

    pair = build(options.sizes, device="meta", dtype=torch.float32)
    network = prepare_stage(pair.difflmm, recipe_of(2, options))
    counts, tokens, side = count_parameters(network), visual_tokens(pair), pair.encoder.config.image_size
    lengths = (options.caption_tokens, options.conversation_tokens)
    batches = (options.stage_1_batch, options.stage_2_batch)
    needed = 0
    for batch, text in zip(batches, lengths, strict=True):
        costs = step_costs(
            network,
            pixels=(3, side, side),
            length=1 + tokens + text,
            dtype=torch.bfloat16,
            checkpointing=options.gradient_checkpointing,
        )
        needed = max(needed, sum(memory(counts, *costs, batch=batch, frozen_bytes=2).values()))
    learnt = sum(trainable for trainable, _ in counts.values())
    other = (4 + 8) * learnt + 2 * sum(weight.numel() for weight in pair.clip.parameters())  # LLaVA's adapter and CLIP
    return needed + other


def over_idle(run: Callable[[], Any], device: str) -> int:
    """Bytes that one run takes beyond what is there before it."""
    found = peak_memory(run, device)
    return found["peak"] - found["idle"]


def memory_of(name: str, baseline: str, held: dict[str, int], over: dict[str, int]) -> dict[str, Any]:
    """Peak bytes of a model alone (what it holds between runs and what a run takes beyond), and ratios to another's."""
    peak, other = (held[one] + over[one] for one in (name, baseline))
    return {"peak": peak, "baseline_peak": other, "peak_ratio": peak / other, "over_idle": over[name]}


def memory_peaks(pair: Pair, options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Bytes over idle of every run of every task, each after a warm-up."""
    from difflmm_tasks import tasks

    found = {}
    for task in tasks(pair, options):
        for run in task.runs.values():
            run()
        found[task.name] = {name: over_idle(run, options.device) for name, run in task.runs.items()}
    return found


def memory_in_a_process(arguments: list[str]) -> dict[str, dict[str, int]]:
    """`memory_peaks` from a fresh process, where glibc returns freed tensors at once; before this one holds models.

    Raises:
        GroundingError: that process failed.
    """
    command = [sys.executable, str(Path(__file__).with_name("bench_difflmm.py")), *arguments, "--memory-only"]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | FRESH_MEMORY)
    if finished.returncode:
        raise GroundingError(
            f"the process that measures memory ended with {finished.returncode}; --no-memory leaves it out\n"
            f"{finished.stderr.strip()}"
        )
    return json.loads(finished.stdout.splitlines()[-1])
