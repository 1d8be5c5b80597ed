"""From a conversation to token ids and labels: what is said, and which of it is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from core.errors import GroundingError
from core.prompts import (
    ANSWERS,
    IMAGE,
    TEMPLATES,
    begins_with_bos,
    conversation_text,
    image_gap,
    messages,
    space_images,
)

IGNORE = -100  # label of the tokens that carry no loss


@dataclass(frozen=True)
class Tokens:
    """Token ids of one conversation and their labels: the id itself in an answer, `IGNORE` elsewhere.

    The labels are not shifted; the model compares each with the prediction of the position before it.
    """

    ids: Int[Tensor, " s"]
    labels: Int[Tensor, " s"]


def tokenize(
    turns: tuple[tuple[str, str | None], ...],
    tokenizer: Any,
    *,
    template: str,
    visual_tokens: int = 0,
    picture: int | None = 0,
    max_length: int = 2048,
) -> Tokens:
    """Ids and labels of one conversation, cut after `max_length` tokens.

    The prompt that `core.lmm.LMM` makes with the same template is the beginning of the ids, up to the first learnt one.

    Args:
        turns: (question, answer) pairs; a last answer may be None.
        tokenizer: a fast tokenizer with the image token `core.prompts.IMAGE`.
        template: a name in `core.prompts.TEMPLATES`, or a chat template with the same words. "plain" is the picture and
            the first answer; questions have no place in it.
        visual_tokens: of the picture; 0 for text-only samples.
        picture: number of the question that the picture stands in; None: it is not shown.
        max_length: of the ids.

    Raises:
        GroundingError: no turns; a tokenizer without character offsets or without an end-of-sequence token.

    Source: LLaVA's `preprocess_plain` and `preprocess_v1`, token by token for Llama's sentencepiece tokenizer, together
    with what they leave without loss: conversations in which an answer is missing or empty, or a text holds the words
    that answers are found by. Their counts suppose Llama's tokens; with other tokenizers they drop all conversations of
    several turns, which are learnt here.
    """
    if not getattr(tokenizer, "is_fast", False) or not tokenizer.eos_token:
        raise GroundingError(
            f"{type(tokenizer).__name__} gives no character offsets or has no end-of-sequence token; load the fast "
            "tokenizer of the language model (AutoTokenizer does)"
        )
    if not turns:
        raise GroundingError("the conversation has no turns; give at least one question and answer")
    plain = template == "plain"
    if plain:
        turns, picture = (("", turns[0][1] or ""),), 0
    picture = picture if visual_tokens else None
    text = conversation_text(tokenizer, messages(turns, picture=picture), TEMPLATES.get(template, template))
    text = space_images(text, tokenizer, IMAGE, gap=image_gap(tokenizer, IMAGE)).replace(IMAGE, IMAGE * visual_tokens)
    found = tokenizer(
        text, return_offsets_mapping=True, add_special_tokens=not begins_with_bos(text, tokenizer), verbose=False
    )
    ids, offsets = torch.tensor(found["input_ids"], dtype=torch.int64), found["offset_mapping"]
    if plain:
        spans, rest = [(len(IMAGE) * visual_tokens, len(text))], len(text)
    else:
        spans, rest = answer_spans(text, tokenizer.eos_token)
    learnt = torch.tensor(
        [any(start < stop and end > begin and end > start for begin, stop in spans) for start, end in offsets],
        dtype=torch.bool,
    )
    if not plain and _dropped(found["input_ids"], offsets, text, rest, tokenizer, max_length):
        learnt[:] = False
    return Tokens(ids[:max_length], torch.where(learnt, ids, IGNORE)[:max_length])


def answer_spans(text: str, eos: str) -> tuple[list[tuple[int, int]], int]:
    """The answers in a rendered conversation, as character spans, and where what has no clear answer begins.

    A span begins right behind "ASSISTANT:", where generation begins, and includes what closes the answer. As LLaVA
    does it, answers are found by the words around them: the text before each end of sequence must hold one.
    """
    word, spans, start = f" {ANSWERS} ", [], 0
    while start < len(text):
        stop = text.find(eos, start)
        part = text[start : stop if stop >= 0 else None]
        if stop < 0 or part.count(word) != 1:
            break
        spans.append((start + part.index(word) + len(word) - 1, stop + len(eos)))
        start = stop + len(eos)
    return spans, start


def _dropped(
    ids: list[int], offsets: list[tuple[int, int]], text: str, rest: int, tokenizer: Any, max_length: int
) -> bool:
    """Whether LLaVA learns nothing of a conversation, because it counts other tokens in its answers than it has.

    That is so where something is left behind the clear answers, or where the unknown token, which LLaVA pads with, is
    said; unless the counted part is as long as a sample can be. A picture counts as one token there.
    """
    if rest == len(text) and tokenizer.unk_token_id not in ids:
        return False
    counted = [token for token, (start, _) in zip(ids, offsets, strict=True) if start < rest]
    pictures = counted.count(tokenizer.convert_tokens_to_ids(IMAGE))
    return len(counted) - max(pictures - 1, 0) < max_length
