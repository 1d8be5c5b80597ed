"""The result of a stage as an ordinary checkpoint: adapter merged, processor beside it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoints import load_checkpoint
from core.claim import read_claim
from core.errors import GroundingError
from core.prompts import adopt_template
from core.training.recipes import Recipe
from core.training.stages import finished_model, prepare_stage

log = logging.getLogger(__name__)
SHARDED = "trained"  # what a run with sharded weights leaves: the learnt ones
MODEL = "model"
LEARNT = "model.safetensors"  # the learnt weights in a checkpoint


def save_learnt(weights: dict[str, Tensor], directory: Path) -> None:
    """Write learnt weights to a checkpoint's directory."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous().cpu() for name, weight in weights.items()}, directory / LEARNT)


def load_learnt(model: nn.Module, directory: Path, names: list[str]) -> None:
    """Read learnt weights into the model, in place, but for those that DeepSpeed's ZeRO-3 has already cut into pieces:
    its own checkpoint holds them.

    Args:
        names: of the weights that the model learns.

    Raises:
        GroundingError: the file holds other weights.
    """
    from safetensors.torch import load_file

    weights = load_file(directory / LEARNT)
    if set(names) != weights.keys():
        raise GroundingError(
            f"{str(directory / LEARNT)!r} holds {', '.join(sorted(weights)[:3])}..., which are not what this model "
            "learns; go on with the model and the stage that the run began with"
        )
    cut = {name for name, weight in model.named_parameters() if hasattr(weight, "ds_id")}
    model.load_state_dict({name: weight for name, weight in weights.items() if name not in cut}, strict=False)


def save_result(trainer: Any, processor: Any, output: Path) -> Path:
    """Save a trained model to `output/model`; called by every process of a run.

    Sharded weights are only gathered, into `output/trained`: merging them takes a process of its own.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(output / SHARDED))
        if trainer.is_world_process_zero():
            log.warning("the weights were sharded; make the model of them with: --merge --output %s", output)
    elif trainer.is_world_process_zero():
        model = finished_model(trainer.accelerator.unwrap_model(trainer.model))
        _write(model, processor, output / MODEL)
    trainer.accelerator.wait_for_everyone()
    return output / MODEL


def merge_sharded(output: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """`output/model` from what a run with sharded weights left in `output/trained`; one process, on the CPU.

    The run's starting model is read again, from where `recipe.json` says.

    Raises:
        GroundingError: no such run, or it has not ended.
    """
    from core.encoders.llava import with_square

    output = Path(output)
    trained = output / SHARDED
    if not (output / "recipe.json").is_file() or not trained.is_dir():
        raise GroundingError(f"{str(output)!r} holds no ended run with sharded weights; nothing to merge")
    settings = read_claim(output / "recipe.json")["config"]
    model, processor = load_checkpoint(settings["model"], device="cpu", dtype=dtype)
    recipe = Recipe(**settings["recipe"])
    adopt_template(processor, recipe.template)
    model = prepare_stage(model, recipe)
    load_learnt(model, trained, [name for name, weight in model.named_parameters() if weight.requires_grad])
    processor = with_square(processor, "pad" if recipe.pad else "crop")
    return _write(finished_model(model), processor, output / MODEL)


def _write(model: Any, processor: Any, directory: Path) -> Path:
    model.config.get_text_config().use_cache = True
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
