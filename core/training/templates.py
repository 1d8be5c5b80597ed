"""From a conversation to token ids and labels: what is said, and which of it is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from core.errors import GroundingError
from core.prompts import TEMPLATES as PROMPTS

IGNORE = -100  # label of the tokens that carry no loss
TEMPLATES = ("plain", "vicuna_v1")


@dataclass(frozen=True)
class Tokens:
    """Token ids of one conversation and their labels: the id itself in an answer, `IGNORE` elsewhere.

    The labels are not shifted; the model compares each with the prediction of the position before it.
    """

    ids: Int[Tensor, " s"]
    labels: Int[Tensor, " s"]


def render(
    turns: tuple[tuple[str, str], ...], template: str, *, image: str, eos: str
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of a conversation, and the character spans in it that are learnt.

    Args:
        turns: (question, answer) pairs.
        template: "plain" writes the picture and the first answer, closed by a line break; questions have no place in
            it. "vicuna_v1" writes every turn after a system prompt and closes every answer with `eos`.
        image: what stands for the picture; empty for text-only samples.
        eos: text of the end-of-sequence token.

    Raises:
        GroundingError: unknown template, or a conversation without turns.

    Source: LLaVA's `preprocess_plain` and `preprocess_v1`. A span begins right behind "ASSISTANT:", where generation
    begins, and includes what closes the answer.
    """
    if template not in TEMPLATES:
        raise GroundingError(f"unknown template {template!r}; use one of {', '.join(TEMPLATES)}")
    if not turns:
        raise GroundingError("the conversation has no turns; give at least one question and answer")
    if template == "plain":
        text = f"{image}{turns[0][1]}\n"
        return text, ((len(image), len(text)),)
    text, spans = f"{PROMPTS['vicuna_v1'][1]} ", []
    for number, (question, answer) in enumerate(turns):
        picture = f"{image}\n" if image and number == 0 else ""
        text += f"USER: {picture}{question} ASSISTANT:"
        start = len(text)
        text += f" {answer}{eos}"
        spans.append((start, len(text)))
    return text, tuple(spans)


def tokenize(
    turns: tuple[tuple[str, str], ...], tokenizer: Any, *, template: str, image: str = "", max_length: int = 2048
) -> Tokens:
    """Ids and labels of one conversation, cut after `max_length` tokens.

    The text is tokenised whole, as a processor would, and a token is learnt if it overlaps an answer's span.

    Args:
        turns, template: as for `render`.
        tokenizer: a fast tokenizer.
        image: the image token, as often as the picture has visual tokens; empty for text-only samples.
        max_length: of the ids.

    Raises:
        GroundingError: as for `render`; or a tokenizer without character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise GroundingError(
            f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer (AutoTokenizer does)"
        )
    text, spans = render(turns, template, image=image, eos=tokenizer.eos_token or "")
    found = tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor(found["input_ids"][:max_length], dtype=torch.int64)
    learnt = [
        any(start < stop and end > begin and end > start for begin, stop in spans)
        for start, end in found["offset_mapping"][:max_length]
    ]
    return Tokens(ids, torch.where(torch.tensor(learnt, dtype=torch.bool), ids, IGNORE))
