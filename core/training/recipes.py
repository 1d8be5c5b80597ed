"""What each of the two stages is: the values of the paper's recipe, all of them overridable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.errors import GroundingError
from core.prompts import TEMPLATES


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a stage; where and how it runs is in `core.training.run.RunOptions`.

    Source: paper section 4.1 and LLaVA-1.5's public scripts. LoRA's dropout is LLaVA's.
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
    clip_norm: float = 1.0  # largest norm of the gradient
    max_length: int = 2048  # tokens of a sample, visual ones included
    group: bool = False  # batches of one modality and of similar lengths
    pad: bool = True  # pictures padded to a square, so that nothing of them is cropped
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


STAGES = {
    1: Recipe(template="plain", batch=256, learning_rate=1e-3),
    2: Recipe(
        template="vicuna_v1",
        batch=128,
        learning_rate=2e-4,
        visual_learning_rate=2e-5,
        lora_rank=128,
        group=True,
    ),
}


def stage_recipe(stage: int, **changes: Any) -> Recipe:
    """The paper's recipe of stage 1 (projector) or 2 (instruction tuning), with fields of `Recipe` changed.

    Raises:
        GroundingError: another stage, an unknown field, or a value that cannot be meant.
    """
    if stage not in STAGES:
        raise GroundingError(f"there are the stages 1 and 2, got {stage!r}")
    unknown = sorted(set(changes) - set(Recipe.__dataclass_fields__))
    if unknown:
        raise GroundingError(
            f"a recipe has no {', '.join(unknown)}; its fields are {', '.join(Recipe.__dataclass_fields__)}"
        )
    return replace(STAGES[stage], **changes)
