"""How an answer is decoded: options for `generate`, where an answer ends, and ids of a given answer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import GroundingError
from core.families.base import Family
from core.generation import Generation
from core.prompts import text_after_answer

NEAR = 32  # roundings of the best score by which two batch sizes may differ
_OURS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "past_key_values",
    "output_attentions",
    "return_dict_in_generate",
    "generation_config",
)
_STEPWISE = {  # options of `generate` and the values with which it runs the model once per token
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic", "hybrid"),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "penalty_alpha": (None,),
    "guidance_scale": (None, 1, 1.0),
    "use_mtp": (None, False),
}


def generation_options(family: Family, max_new_tokens: int, given: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `model.generate`: greedy, unless the caller says otherwise.

    Raises:
        GroundingError: no room for a token, or an option that would get in the way of the recording.
    """
    if max_new_tokens < 1:
        raise GroundingError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if refused := [name for name in _OURS if name in given]:
        raise GroundingError(
            f"generate does not take {', '.join(refused)}: it makes the inputs itself, options are keyword arguments, "
            "and attention comes back as Generation.attention (and per head with per_head=True)"
        )
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1} | given
    pad = family.processor.tokenizer.pad_token_id
    if pad is not None:
        options.setdefault("pad_token_id", pad)
    if not options["do_sample"]:  # a checkpoint's sampling settings say nothing to greedy decoding
        for name in ("temperature", "top_p", "top_k"):
            if getattr(family.model.generation_config, name, None) is not None:
                options.setdefault(name, None)
    return options


def runs_stepwise(model: nn.Module, options: dict[str, Any]) -> bool:
    """Whether `generate` runs the model exactly once per token, on a growing cache that keeps what it has seen."""
    config = copy.deepcopy(model.generation_config)
    config.update(**options)
    usual = all(getattr(config, name, None) in values for name, values in _STEPWISE.items())
    return usual and not options.get("assistant_model") and not options.get("custom_generate")


class ClosestChoice:
    """A logits processor that changes nothing and notes how close each sample's greedy choices were.

    The distance between the two best scores, as a share of the best (of 1 where that is smaller), at most 1.
    """

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.float().topk(2, dim=-1).values
        self._steps.append(((best[:, 0] - best[:, 1]) / best[:, 0].abs().clamp(min=1)).clamp(max=1))
        return scores

    def added_to(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of `generate` with this behind the processors that they have."""
        from transformers import LogitsProcessorList

        return options | {"logits_processor": LogitsProcessorList([*(options.get("logits_processor") or ()), self])}

    def noted_in(self, batch: list[Generation]) -> list[Generation]:
        """The generations of a batch with its size and their closest choices in their provenance."""
        steps = torch.stack(self._steps).cpu()
        closest = [float(steps[: len(each.token_ids), i].min()) for i, each in enumerate(batch)]
        notes = [{"batch_size": len(batch), "closest_choice": distance} for distance in closest]
        return [replace(each, model=each.model | note) for each, note in zip(batch, notes, strict=True)]


def is_near_tie(generation: Generation) -> bool:
    """Whether an answer was chosen within rounding somewhere, by greedy decoding in a batch: in another batch it may
    read otherwise. In half precision that is true of most long answers.
    """
    closest = generation.model.get("closest_choice")
    return closest is not None and closest < NEAR * torch.finfo(getattr(torch, generation.model["dtype"])).eps


def cut_answers(tails: Tensor, model: nn.Module, options: dict[str, Any]) -> list[Tensor]:
    """Each row of generated ids int64 [B, new] up to its end-of-sequence token, or to its padding."""
    stops = _as_list(options.get("eos_token_id", model.generation_config.eos_token_id))
    stops_early = len(tails) > 1 and any(options.get(name) for name in ("stop_strings", "stopping_criteria"))
    answers = []
    for row in tails.cpu().tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), None)
        if end is None:
            end = len(row)
            while stops_early and end > 0 and row[end - 1] == options.get("pad_token_id"):
                end -= 1
        answers.append(torch.tensor(row[:end], dtype=torch.int64))
    return answers


def answer_ids(answer: Any, family: Family, *, end_of_sequence: bool = True) -> Tensor:
    """int64 [t] of a given answer: a text, tokenised alone without special tokens, or ids.

    Args:
        end_of_sequence: close a text with the token that `generate` would have ended it with; ids stay as they are.

    Raises:
        GroundingError: neither text nor ids, or ids outside the vocabulary.
    """
    if isinstance(answer, str):
        ids = family.processor.tokenizer(answer, add_special_tokens=False).input_ids
        stops = stop_ids(family) if end_of_sequence else []
        if stops and (not ids or ids[-1] not in stops):
            ids = [*ids, stops[0]]
    else:
        ids = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(ids, list | tuple) or not all(isinstance(i, int) for i in ids):
            raise GroundingError(f"an answer is a text or a sequence of int64 ids [t], got {answer!r}")
    size = family.model.get_input_embeddings().num_embeddings
    if outside := [i for i in ids if not 0 <= i < size]:
        raise GroundingError(f"the answer holds the ids {outside[:5]}, outside the vocabulary of {size} tokens")
    return torch.tensor(list(ids), dtype=torch.int64)


def stop_ids(family: Family) -> list[int]:
    """The tokens at which `generate` stops, first the one that ends a turn; empty for a model that never stops.

    A checkpoint may name several: Qwen's chat turns end in `<|im_end|>`, its documents in `<|endoftext|>`; Gemma's in
    `<end_of_turn>` and `<eos>`, and its tokenizer's own is not the turn's. The one that the chat template writes behind
    an answer is what the model learnt to write there; where the template writes none, the tokenizer's own comes first.
    """
    stops = _as_list(family.model.generation_config.eos_token_id)
    if len(stops) < 2:
        return stops
    tokenizer = family.processor.tokenizer
    behind = [*tokenizer(text_after_answer(family), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    first = next((token for token in behind if token in stops), stops[0])
    return [first, *(token for token in stops if token != first)]


def _as_list(eos: int | list[int] | tuple[int, ...] | None) -> list[int]:
    if eos is None:
        return []
    return list(eos) if isinstance(eos, list | tuple) else [eos]


def refuse_image_token(answers: list[Tensor], family: Family) -> None:
    """A model cannot be forced to have said the image token: it would look for pixels there.

    Raises:
        GroundingError: the image token is among an answer's ids.
    """
    if any((ids == family.image_token_id).any() for ids in answers):
        raise GroundingError(
            f"an answer holds the image token {family.placeholder!r} (id {family.image_token_id}), which stands for "
            f"pixels and cannot be replayed; take it out, or generate with suppress_tokens=[{family.image_token_id}]"
        )


def describe(options: dict[str, Any]) -> dict[str, Any]:
    """The options as JSON can hold them; who listens while an answer is written does not belong to them."""
    simple = (str, int, float, bool, type(None))
    return {
        name: value
        if isinstance(value, simple) or (isinstance(value, list) and all(isinstance(v, simple) for v in value))
        else repr(value)
        for name, value in options.items()
        if name != "streamer"
    }
