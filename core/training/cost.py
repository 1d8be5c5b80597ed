"""What one picture and one text cost in a training step, counted by running the model's code without its numbers.

Fake tensors have shapes, dtypes and gradients but no memory, so a 7B model is counted in seconds on any machine, with
exactly what it runs: the VAE, the U-Net up to the block in use, backward only where something learns, and forward again
where activations are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one picture, or of one sequence of tokens.

    Fields:
        operations: floating-point operations forward and backward (a multiplication and an addition are two).
        saved: bytes kept from the forward pass for the backward one.
        passing: bytes of the largest inputs and outputs of one module; this is what frozen parts need.
    """

    operations: int
    saved: int
    passing: int


def step_costs(
    model: nn.Module, *, pixels: tuple[int, ...], length: int, dtype: torch.dtype, checkpointing: bool
) -> tuple[Cost, Cost]:
    """(of one picture through encoder and projector, of one sequence through language model and loss).

    Args:
        model: LLaVA from `core.checkpoints.load_structure` after `core.training.stages.prepare_stage`; its tensors are
            replaced by fake ones, with which it can be counted again but not used.
        pixels: shape of one picture's pixel values, (3, H, W).
        length: tokens of the sequence, visual ones included.
        dtype: of the arithmetic.
        checkpointing: activations are recomputed (`RunOptions.gradient_checkpointing`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    text = plain.config.get_text_config()

    def picture() -> Tensor:
        features = plain.model.get_image_features(torch.empty(1, *pixels, dtype=dtype)).pooler_output
        return torch.cat([one.flatten() for one in features]).sum()

    def sequence() -> Tensor:
        tokens = torch.empty(1, length, text.hidden_size, dtype=dtype, requires_grad=True)  # the projector learns
        hidden = plain.model.language_model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        labels = torch.zeros(1, length, dtype=torch.int64)
        return plain.loss_function(logits=plain.lm_head(hidden), labels=labels, vocab_size=text.vocab_size)

    mode = getattr(next(plain.parameters()), "fake_mode", None)  # of an earlier call
    with FakeTensorMode() if mode is None else mode:
        if mode is None:
            _fake(plain, dtype)
        image, words = (_cost(plain, run, checkpointing=checkpointing) for run in (picture, sequence))
    gradient = 4 * length * text.vocab_size  # of the logits, in float32
    return image, replace(words, passing=words.passing + gradient)


def _fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors on the CPU in the place of parameters and buffers; shared ones stay shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old ones, so that no number is given twice
    for part in model.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                if id(value) not in made:
                    kind = dtype if value.is_floating_point() else value.dtype
                    new = torch.empty(value.shape, dtype=kind, device="cpu")
                    if isinstance(value, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=value.requires_grad)
                    made[id(value)] = (value, new)
                held[name] = made[id(value)][1]


def _cost(model: Any, run: Callable[[], Tensor], *, checkpointing: bool) -> Cost:
    whole = measure(model, run)
    if not checkpointing:
        return whole
    hooks = [(part, part._forward_hooks.copy()) for part in model.modules()]
    switch = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # new and old name
    getattr(model, f"{switch}_checkpointing_enable")({"use_reentrant": False, "preserve_rng_state": False})
    recomputed = measure(model, run)
    getattr(model, f"{switch}_checkpointing_disable")()
    for part, before in hooks:  # disabling leaves behind what makes the inputs of the encoder's layers need a gradient
        part._forward_hooks = before
    layers = model.config.get_text_config().num_hidden_layers  # while one layer is recomputed, its insides are there
    inside = max(whole.saved - recomputed.saved, 0) // layers
    return Cost(recomputed.operations, recomputed.saved + inside, whole.passing)


def measure(model: nn.Module, run: Callable[[], Tensor]) -> Cost:
    """Cost of `run`, which computes a loss with the model, and of its backward pass; on fake tensors or real ones."""
    weights = {_storage(weight) for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's number is given twice
    passing = 0

    def keep(value: Tensor) -> Tensor:
        if _storage(value) not in weights:
            kept[_storage(value)] = value.untyped_storage().nbytes()
            alive.append(value)
        return value

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal passing
        passing = max(passing, sum(value.nbytes for value in (*inputs, output) if isinstance(value, Tensor)))

    hooks = [part.register_forward_hook(look) for part in model.modules()]
    model.train()
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            loss = run()
        loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return Cost(counter.get_total_flops(), sum(kept.values()), passing)


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _same(value: Tensor) -> Tensor:
    return value
