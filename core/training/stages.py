"""What learns in each stage, and how the result becomes an ordinary checkpoint again."""

from __future__ import annotations

from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from torch import nn

from core.errors import GroundingError
from core.training.recipes import Recipe

PROJECTOR = "model.multi_modal_projector"
TOWER = "model.vision_tower"
LANGUAGE = "model.language_model"


def visual_parts(model: nn.Module) -> list[str]:
    """Names of the modules that learn on the visual side: the projector and, in an encoder of this package, whatever
    it does not declare frozen (implicit captioner, positional encoding).

    Raises:
        GroundingError: not a LLaVA-like model.
    """
    try:
        model.get_submodule(PROJECTOR)
        tower = model.get_submodule(TOWER)
    except AttributeError as error:
        raise GroundingError(
            f"{type(model).__name__} has no {PROJECTOR} and {TOWER}; training works on LlavaForConditionalGeneration"
        ) from error
    parts = [PROJECTOR]
    if hasattr(tower, "frozen_parts"):
        frozen = {id(weight) for part in tower.frozen_parts() for weight in part.parameters()}
        parts += [
            f"{TOWER}.{name}"
            for name, part in tower.named_children()
            if any(id(weight) not in frozen for weight in part.parameters())
        ]
    return parts


def prepare_stage(model: nn.Module, recipe: Recipe) -> Any:
    """The model with the right parts trainable (float32) and everything else frozen, in place.

    A vision tower in which nothing learns runs without gradients from then on; a diffusion encoder draws its noise in
    training as the recipe says, of which its configuration keeps nothing.

    Returns:
        The model itself without LoRA; with it a `PeftModel` with LoRA on all linear layers of the language model. The
        visual parts learn in place: PEFT's `modules_to_save` would gather their shards on one process only.

    Raises:
        GroundingError: not a LLaVA-like model.

    Source: paper section 4.1: VAE, U-Net and CLIP frozen; projector, implicit captioner and PE learn in both stages.
    """
    visual = [model.get_submodule(name) for name in visual_parts(model)]
    tower = model.get_submodule(TOWER)
    model.requires_grad_(False)
    if hasattr(tower, "fresh_noise"):
        tower.fresh_noise = recipe.noise == "fresh"
    if recipe.lora_rank:
        from peft import LoraConfig, get_peft_model

        linear = [name for name, part in model.get_submodule(LANGUAGE).named_modules() if isinstance(part, nn.Linear)]
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=[f"{LANGUAGE}.{name}" for name in linear],
            task_type="CAUSAL_LM",
        )
        with catch_warnings():  # PEFT reads an old name of transformers' checkpointing
            filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = get_peft_model(model, config)
    for part in visual:
        part.requires_grad_(True)
    dtype = _learning_dtype(model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
    if not any(weight.requires_grad for weight in tower.parameters()):
        _run_without_gradients(tower)
    return model


def _learning_dtype(model: nn.Module) -> torch.dtype:
    """float32; where DeepSpeed's ZeRO-3 cut the weights into pieces as they were read, the pieces' dtype for all, as it
    gathers them in one buffer. Its optimiser keeps float32 copies.
    """
    return next(
        (weight.ds_tensor.dtype for weight in model.parameters() if hasattr(weight, "ds_tensor")), torch.float32
    )


def _run_without_gradients(tower: nn.Module) -> None:
    """A tower in which nothing learns keeps no graph, as in LLaVA's code.

    With gradient checkpointing, transformers makes the output of CLIP's patch embedding require a gradient; a frozen
    CLIP would be computed twice and differentiated in every step.
    """
    enabled: list[bool] = []

    def stop(*_: Any) -> None:
        enabled.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def go_on(*_: Any) -> None:
        torch.set_grad_enabled(enabled.pop())

    tower.register_forward_pre_hook(stop)
    tower.register_forward_hook(go_on, always_call=True, prepend=True)  # prepared twice: last in, first out


def finished_model(model: nn.Module) -> Any:
    """The plain LLaVA of a trained stage: LoRA merged into the weights, visual parts in their places."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """What the optimiser updates: LoRA's weights and the visual parts, each with its learning rate.

    Weight decay spares biases, norms and positional encodings.
    """
    visual_rate = recipe.learning_rate if recipe.visual_learning_rate is None else recipe.visual_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = recipe.learning_rate if "lora_" in name else visual_rate
            decay = recipe.weight_decay if weight.ndim == 2 else 0.0
            groups.setdefault((rate, decay), []).append(weight)
    first = sorted(groups, key=lambda key: key[0] != recipe.learning_rate)  # its rate is what logs show
    return [{"params": groups[rate, decay], "lr": rate, "weight_decay": decay} for rate, decay in first]


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(trainable, frozen) numbers of parameters of each part: language_model, lora, projector, vision_tower.<part>."""
    counts: dict[str, tuple[int, int]] = {}
    for name, weight in model.named_parameters():
        part = _part(name)
        trainable, frozen = counts.get(part, (0, 0))
        size = weight.numel()
        counts[part] = (trainable + size, frozen) if weight.requires_grad else (trainable, frozen + size)
    return counts


def _part(name: str) -> str:
    if "lora_" in name:
        return "lora"
    path = name.removeprefix("base_model.model.").removeprefix("model.").split(".")
    if path[0] == "multi_modal_projector":
        return "projector"
    if path[0] == "vision_tower" and path[1] in ("vae", "unet", "clip", "captioner", "positions", "head", "towers"):
        return f"vision_tower.{path[1]}"
    return path[0]
