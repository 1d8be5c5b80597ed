"""The Hugging Face Trainer with this package's sampling, learning rates and loss log."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from core.training.export import load_learnt, save_learnt
from core.training.loss_log import append_loss, rewind
from core.training.recipes import Recipe
from core.training.stages import parameter_groups
from core.training.templates import IGNORE

DIVISOR = "loss_divisor"  # of one device batch, beside its inputs


def build_trainer(
    model: Any,
    arguments: Any,
    *,
    data: Any,
    collator: Any,
    sampler: Any,
    recipe: Recipe,
    losses: Path,
    checkpoint: str | None = None,
    progress: bool = True,
) -> Any:
    """A `transformers.Trainer` for one stage.

    Args:
        model: from `core.training.stages.prepare_stage`.
        arguments: `transformers.TrainingArguments`.
        data, collator, sampler: dataset, collate function and `EpochSampler`.
        recipe: gives the learning rates, and over how many samples the loss is a mean.
        losses: file of the loss log.
        checkpoint: directory of the checkpoint that the run goes on from.
        progress: show a bar; one of plain text, which logs and exported notebooks keep.

    Raises:
        GroundingError: the checkpoint holds other weights than this model learns.
    """
    learnt = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if checkpoint is not None:
        load_learnt(model, Path(checkpoint), learnt)
    trainer = _trainer_class()(model=model, args=arguments, train_dataset=data, data_collator=collator)
    trainer.sampler, trainer.recipe, trainer.learnt = sampler, recipe, learnt
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_run_callback(sampler, losses, progress=progress))
    return trainer


def loss_divisors(counts: Int[Tensor, " n"], *, batches: int) -> Int[Tensor, " n"]:
    """What the summed loss of each batch is divided by, so that a step's loss is the mean of means.

    Args:
        counts: answer tokens of the step's batches, in the order of the samples.
        batches: how many consecutive ones share a mean; the last may have fewer.
    """
    place = torch.arange(len(counts), device=counts.device) // batches
    means = int(place[-1]) + 1
    return (torch.zeros(means, dtype=counts.dtype, device=counts.device).index_add(0, place, counts) * means)[place]


@cache
def _trainer_class() -> type:
    from transformers import Trainer

    class StageTrainer(Trainer):
        """Trainer whose batches come from `self.sampler`, and whose learning rates and means from `self.recipe`.

        Checkpoints hold the learnt weights only, under the model's own names, whether the weights are sharded or not.
        """

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return self.sampler

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                model = self.model if model is None else model
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
                self.optimizer = kind(parameter_groups(model, self.recipe), **options)
            return self.optimizer

        def get_batch_samples(self, *given: Any, **options: Any) -> tuple[list, Any]:
            batches, count = super().get_batch_samples(*given, **options)
            if self.recipe.loss_batch and batches:
                learnt = torch.stack([(batch["labels"][:, 1:] != IGNORE).sum() for batch in batches])
                every = self.accelerator.gather(learnt.to(self.args.device)).view(-1, len(batches))
                size = self.recipe.mean_over // self.args.per_device_train_batch_size
                divisors = loss_divisors(every.T.flatten(), batches=size).view_as(every.T).T  # batches go round devices
                for batch, divisor in zip(batches, divisors[self.args.process_index], strict=True):
                    batch[DIVISOR] = divisor
            return batches, count

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
            num_items_in_batch = inputs.pop(DIVISOR, num_items_in_batch)
            if num_items_in_batch is not None:  # 0 where every sample of the step is unreadable: no loss, not NaN
                num_items_in_batch = max(num_items_in_batch, num_items_in_batch * 0 + 1)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            if self.args.should_save:
                state = self.accelerator.unwrap_model(self.model).state_dict() if state_dict is None else state_dict
                save_learnt({name: state[name] for name in self.learnt}, Path(output_dir or self.args.output_dir))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """Nothing: `build_trainer` has read the weights, before anything wraps or shards the model."""

    return StageTrainer


def _run_callback(sampler: Any, losses: Path, *, progress: bool) -> Any:
    from tqdm import tqdm  # not tqdm.auto: its widgets leave nothing in logs and exported pages
    from transformers import TrainerCallback

    class RunCallback(TrainerCallback):
        """Writes the loss log, moves the bar and tells the sampler the epoch.

        Accelerate does the latter, too, but not through the wrappers of a distributed run that is resumed.
        """

        def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            if state.is_world_process_zero:
                rewind(losses, state.global_step)
            shown = progress and state.is_local_process_zero
            options = {"initial": state.global_step, "unit": "step", "mininterval": 2.0, "disable": not shown}
            self.bar = tqdm(total=state.max_steps, desc="training", **options)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            sampler.set_epoch(int((state.epoch or 0) + 1e-6))

        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            self.bar.update()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
            if logs and "loss" in logs:
                self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)
                if state.is_world_process_zero:
                    append_loss(losses, {"step": state.global_step, **logs})

        def on_train_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            self.bar.close()

    return RunCallback()
