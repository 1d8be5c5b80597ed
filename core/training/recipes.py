"""What each of the two stages is: the values of the paper's recipe, all of them overridable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.errors import GroundingError
from core.prompts import TEMPLATES

NOISES = ("fresh", "fixed")


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a stage; where and how it runs is in `core.training.run.RunOptions`.

    Source: paper section 4.1 and LLaVA-1.5's public scripts (scripts/v1_5/pretrain.sh and finetune_lora.sh, with
    zero2.json and zero3.json). Under DeepSpeed transformers leaves clipping to it and its max_grad_norm of 1 is not
    applied; these configurations name no gradient_clipping, which their DeepSpeed, 0.12.6, takes for none (since 2026
    it would be 1). Their loss is the mean over each of eight devices' own samples, then over the devices: `loss_batch`
    is their batch on a device. The released DiffLMM draws new noise in every forward pass.
    """

    template: str  # a name in core.prompts.TEMPLATES; the trained checkpoint is asked with it
    batch: int  # samples per optimiser step, over all devices and accumulation steps
    learning_rate: float  # of the LoRA weights, and of the visual parts where they have no rate of their own
    visual_learning_rate: float | None = None  # of the projector and of what learns in the encoder
    lora_rank: int = 0  # 0: the language model stays as it is
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    epochs: float = 1.0
    schedule: str = "cosine"  # a scheduler of transformers
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # largest norm of the gradient; 0: it is not clipped
    loss_batch: int = 0  # samples whose answer tokens share one mean; a step's loss is the mean of these; 0: one mean
    max_length: int = 2048  # tokens of a sample, visual ones included
    group: bool = False  # steps of one modality, in which devices get samples of as many words as each other
    pad: bool = False  # pictures padded to a square; else the shorter edge is resized and the centre cropped
    noise: str = "fresh"  # of a diffusion encoder in training: "fresh" for every picture and pass, or "fixed"
    bf16: bool = True  # arithmetic in bfloat16; what learns is kept in float32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise GroundingError(f"unknown template {self.template!r}; use one of {', '.join(TEMPLATES)}")
        for name in ("batch", "learning_rate", "epochs", "max_length", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise GroundingError(f"{name} must be positive, got {getattr(self, name)}")
        if self.lora_rank < 0 or not 0 <= self.warmup < 1:
            raise GroundingError(
                f"lora_rank is at least 0 and warmup a share from 0 to 1, got {self.lora_rank} and {self.warmup}"
            )
        for name in ("clip_norm", "loss_batch"):
            if getattr(self, name) < 0:
                raise GroundingError(f"{name} is at least 0, which is without, got {getattr(self, name)}")
        if self.batch % self.mean_over and self.batch > self.mean_over:
            raise GroundingError(
                f"batch {self.batch} is no multiple of loss_batch {self.loss_batch}; give one, or 0 for one mean"
            )
        if self.noise not in NOISES:
            raise GroundingError(f"unknown noise {self.noise!r}; use one of {', '.join(NOISES)}")

    @property
    def mean_over(self) -> int:
        """Samples whose answer tokens share one mean of the loss: `loss_batch`, or all of a step."""
        return min(self.loss_batch or self.batch, self.batch)


STAGES = {
    1: Recipe(template="plain", batch=256, learning_rate=1e-3, loss_batch=32),
    2: Recipe(
        template="vicuna_v1",
        batch=128,
        learning_rate=2e-4,
        visual_learning_rate=2e-5,
        lora_rank=128,
        loss_batch=16,
        group=True,
        pad=True,
    ),
}
RECIPES = {
    "paper": STAGES,
    # the public scripts' values by name, whatever "paper" may come to differ in; 42 is the seed of transformers
    "llava_1_5": {stage: replace(recipe, seed=42) for stage, recipe in STAGES.items()},
}


def stage_recipe(stage: int, recipe: str = "paper", **changes: Any) -> Recipe:
    """A recipe of stage 1 (projector) or 2 (instruction tuning), with fields of `Recipe` changed.

    Args:
        stage: 1 or 2.
        recipe: one of `RECIPES`: "paper", or "llava_1_5" for LLaVA's public scripts to the letter.
        changes: fields of `Recipe`.

    Raises:
        GroundingError: another stage or recipe, an unknown field, or a value that cannot be meant.
    """
    if recipe not in RECIPES:
        raise GroundingError(f"unknown recipe {recipe!r}; use one of {', '.join(RECIPES)}")
    if stage not in STAGES:
        raise GroundingError(f"there are the stages 1 and 2, got {stage!r}")
    unknown = sorted(set(changes) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise GroundingError(
            f"a recipe has no {', '.join(unknown)}; its fields are {', '.join(Recipe.__dataclass_fields__)}"
        )
    return replace(RECIPES[recipe][stage], **changes)
