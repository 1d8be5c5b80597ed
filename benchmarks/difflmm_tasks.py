"""What is measured: visual encoding, generation and training steps, each as runs of LLaVA and of DiffLMM."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from difflmm_models import Pair, inputs, pixels, visual_tokens
from torch import Tensor, nn

from core.training.recipes import Recipe, stage_recipe
from core.training.stages import parameter_groups, prepare_stage

CLAIM = "< 1.05"  # of the paper, for training and inference
LLAVA, DIFFLMM, WHOLE = "LLaVA", "DiffLMM", "DiffLMM, whole U-Net"


@dataclass(frozen=True)
class Task:
    """Runs that are compared. `rows` are (run, baseline); `held` are the bytes that stay between two runs."""

    name: str
    runs: dict[str, Callable[[], Any]]
    rows: tuple[tuple[str, str], ...]
    held: dict[str, int]
    claim: str = ""


def tasks(pair: Pair, options: argparse.Namespace) -> Iterator[Task]:
    """One after another: the training steps change the models, so each task is run before the next is asked for."""
    yield encoding(pair, options)
    if pair.llava is None:
        return
    models = {LLAVA: pair.llava, DIFFLMM: pair.difflmm}
    for count in options.new_tokens:
        runs = {name: generation(model, count, visual_tokens(pair), options) for name, model in models.items()}
        held = {name: held_bytes(model) for name, model in models.items()}
        yield Task(f"generation, {count} new token{'s' * (count > 1)}", runs, ((DIFFLMM, LLAVA),), held, CLAIM)
    for stage in (1, 2):
        steps = {name: Step(model, stage, visual_tokens(pair), options) for name, model in models.items()}
        for step in steps.values():
            step()  # so that the optimiser's moments are there
        held = {name: held_bytes(step.network, step.optimiser) for name, step in steps.items()}
        yield Task(f"training step, stage {stage}", dict(steps), ((DIFFLMM, LLAVA),), held, CLAIM)


def encoding(pair: Pair, options: argparse.Namespace) -> Task:
    """Pictures to features, without gradients."""
    towers = {LLAVA: pair.clip, DIFFLMM: pair.encoder, WHOLE: pair.whole}
    given = {name: pixels(tower, options.encoding_batch) for name, tower in towers.items()}

    def run(name: str) -> Callable[[], Tensor]:
        def encode() -> Tensor:
            with torch.no_grad():
                return towers[name](given[name], output_hidden_states=True).hidden_states[-1]

        return encode

    rows = ((DIFFLMM, LLAVA), (WHOLE, LLAVA), (WHOLE, DIFFLMM))
    held = {name: held_bytes(tower) for name, tower in towers.items()}
    return Task("visual encoding", {name: run(name) for name in towers}, rows, held)


def generation(model: Any, count: int, tokens: int, options: argparse.Namespace) -> Callable[[], Tensor]:
    """Picture and prompt to exactly `count` new tokens: one prefill, then one step per further token."""
    given = inputs(model, batch=1, text_tokens=options.prompt_tokens, tokens=tokens)

    def generate() -> Tensor:
        with torch.no_grad():
            return model.generate(**given, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)

    return generate


class Step:
    """Forward, backward, clipping and AdamW of one device batch, as `core.training` runs them."""

    def __init__(self, model: Any, stage: int, tokens: int, options: argparse.Namespace) -> None:
        self.recipe: Recipe = recipe_of(stage, options)
        self.network = prepared(model, self.recipe, options)
        text, batch = text_tokens(stage, options), batch_of(stage, options)
        self.given = inputs(model, batch=batch, text_tokens=text, tokens=tokens, labels=True)
        self.optimiser = torch.optim.AdamW(parameter_groups(self.network, self.recipe))
        self.learnt = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.mixed = model.device.type != "cpu" and self.recipe.bf16

    def __call__(self) -> None:
        with torch.autocast(self.learnt[0].device.type, dtype=torch.bfloat16, enabled=self.mixed):
            loss = self.network(**self.given, use_cache=False).loss
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.learnt, self.recipe.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()


def recipe_of(stage: int, options: argparse.Namespace) -> Recipe:
    """The paper's recipe of a stage; LoRA's rank is the scale's."""
    if stage == 1:
        return stage_recipe(1)
    return stage_recipe(2, lora_rank=options.lora_rank, lora_alpha=2 * options.lora_rank)


def prepared(model: Any, recipe: Recipe, options: argparse.Namespace) -> Any:
    """The model ready for a stage, with or without gradient checkpointing as the Trainer switches it on."""
    network = prepare_stage(model, recipe).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 has another name for it, 5.17 has not
        if options.gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            network.gradient_checkpointing_disable()
    return network


def text_tokens(stage: int, options: argparse.Namespace) -> int:
    return options.caption_tokens if stage == 1 else options.conversation_tokens


def batch_of(stage: int, options: argparse.Namespace) -> int:
    return options.stage_1_batch if stage == 1 else options.stage_2_batch


def held_bytes(module: nn.Module, optimiser: Any = None) -> int:
    """Bytes of a module's weights and buffers and of an optimiser's state; shared tensors count once."""
    held = [*module.parameters(), *module.buffers()]
    if optimiser is not None:
        held += [value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())
