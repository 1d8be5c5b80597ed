"""The training loop of the embedded LLaVA, of the two stages and of their parts: AdamW, warm-up and cosine, resumable.

A killed run goes on from its last training state, and does what the uninterrupted run would have done where `loss`
draws whatever is random in a step from that step's own number. The vision encoder, DINO and Segment Anything have
loops of their own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from core.atomic import save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How a loop steps.

    Fields:
        steps: optimiser steps.
        learning_rate: after a linear warm-up over a share `warmup` of the steps; a half cosine down to 2 % of it
            follows.
        mixed: in `half_precision`.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    clip_norm: float = 1.0
    mixed: bool = False


def warm_cosine(step: int, *, steps: int, warmup: float = 0.05) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, then a half cosine down to 2 %."""
    start = max(1, int(warmup * steps))
    if step < start:
        return (step + 1) / start
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def computes_bfloat16() -> bool:
    """Whether this processor has bfloat16 kernels, by oneDNN, which torch calls for them."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def half_precision(device: str = "cpu", *, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16 where the processor computes in it; elsewhere float32.

    On x86 processors without AVX-512 torch has slow loops only for bfloat16: products take over twenty times as long.
    """
    native = device != "cpu" or computes_bfloat16()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled and native)


def training_attention() -> str:
    """The attention that trains a language model of some hundred tokens fastest on this processor.

    In bfloat16 eager's products win; without it the fused kernel takes a third less time for a step.
    """
    return "eager" if computes_bfloat16() else "sdpa"


class Average:
    """Moving average of a module's weights; the first steps count for less, so that the random start is soon gone.

    Fields:
        kept: a copy of the module with the averaged weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.kept = deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Takes in the weights after `steps` finished steps."""
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.kept.parameters()), list(self.module.parameters()), share)


def fit(
    title: str,
    modules: Mapping[str, nn.Module],
    loss: Callable[[int], Tensor],
    recipe: Fit,
    *,
    state: Path,
    parameters: Iterable[nn.Parameter] | list[dict] | None = None,
    after: Callable[[int, float], None] | None = None,
    save_every: int = 200,
    log_every: int = 50,
) -> None:
    """Minimises `loss(step)`.

    Args:
        title: what the log calls it.
        modules: whose states are kept in the training state.
        loss: of one step; what it draws must follow from the step's number alone, as `step_generator`'s numbers do.
        state: file of the training state; gone on from where it exists, whatever recipe it is of, and deleted after
            the last step, so that a run killed before its caller has saved the result starts anew.
        parameters: what is trained, or the optimiser's parameter groups; by default all that needs a gradient.
        after: called with the number of finished steps and the loss.
    """
    if parameters is None:
        parameters = [weight for part in modules.values() for weight in part.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        list(parameters), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas
    )
    trained = [weight for group in optimiser.param_groups for weight in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, partial(warm_cosine, steps=recipe.steps, warmup=recipe.warmup)
    )
    parts = {**modules, "optimiser.": optimiser, "schedule.": schedule}
    start, running = _resume(state, parts, title), None
    for step in range(start, recipe.steps):
        with half_precision(enabled=recipe.mixed):
            value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        optimiser.step()
        schedule.step()
        current = value.item()
        running = current if running is None else 0.98 * running + 0.02 * current
        if after is not None:
            after(step + 1, current)
        if (step + 1) % log_every == 0:
            log.info("%s: step %d of %d, loss %.4f", title, step + 1, recipe.steps, running)
        if (step + 1) % save_every == 0 and step + 1 < recipe.steps:
            save_tensors({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, state)
    state.unlink(missing_ok=True)


def _resume(state: Path, parts: Mapping, title: str) -> int:
    """Loads a killed run's training state if there is one; the number of steps it had done."""
    if not state.is_file():
        return 0
    stored = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    log.info("%s: going on from step %d", title, stored["step"])
    return stored["step"]
