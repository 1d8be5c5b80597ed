"""From token ids to text, with the characters that each token wrote."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes half a character to
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # sentencepiece's tokens for the bytes of characters it has no token for


def decode_with_spans(tokenizer: Any, token_ids: list[int]) -> tuple[str, Int64[Tensor, "t 2"]]:
    """Decode an answer and tell which characters each token wrote.

    Tokens that share a character (the byte-level pieces of one letter or emoji) all get that character; special
    tokens get an empty span. The answer is decoded in short windows, so the time is linear in its length; only a
    tokenizer whose windows do not add up to the text is decoded prefix by prefix.

    Args:
        tokenizer: a transformers tokenizer.
        token_ids: the t ids of the answer.

    Returns:
        (text, spans): the text without special tokens; spans int64 [t, 2], start and end in characters of the text.
    """
    special = _special_ids(tokenizer)
    visible = [i for i in token_ids if i not in special]
    text = _decode(tokenizer, visible)
    groups = _groups(tokenizer, visible)
    lengths = _windowed(tokenizer, visible, groups, text)
    if lengths is None:
        lengths = [_finished(_decode(tokenizer, visible[:end]), is_bytes) for end, is_bytes in groups]
    written = iter(_spans(tokenizer, visible, groups, lengths, text))
    spans, position = [], 0
    for token in token_ids:
        span = (position, position) if token in special else next(written)
        position = max(position, span[1])
        spans.append(span)
    return text, torch.tensor(spans, dtype=torch.int64).reshape(-1, 2)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


def _special_ids(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def _groups(tokenizer: Any, ids: list[int]) -> list[tuple[int, bool]]:
    """(end, is_bytes) of each group: a run of sentencepiece byte tokens is decoded as a whole, others one by one."""
    pieces = tokenizer.convert_ids_to_tokens(ids) if ids else []
    groups, end = [], 0
    for is_bytes, run in groupby(pieces, key=lambda piece: bool(_BYTE.fullmatch(piece))):
        size = len(list(run))
        groups += [(end + size, True)] if is_bytes else [(end + i + 1, False) for i in range(size)]
        end += size
    return groups


def _finished(text: str, is_bytes: bool) -> tuple[int, bool]:
    """Length without a character that later tokens may still complete, and whether there is one."""
    length = len(text) if is_bytes else len(text.rstrip(_BROKEN))
    return length, length < len(text)


def _windowed(tokenizer: Any, ids: list[int], groups: list, text: str) -> list[tuple[int, bool]] | None:
    """`_finished` of the prefix at each group's end, from short windows; None where they do not rebuild the text."""
    lengths: list[tuple[int, bool]] = []
    anchor = done = total = 0  # start of the window; tokens and characters that are settled
    for end, is_bytes in groups:
        before, after = _decode(tokenizer, ids[anchor:done]), _decode(tokenizer, ids[anchor:end])
        piece = after[len(before) :]
        length, broken = _finished(piece, is_bytes)
        if not after.startswith(before) or not text.startswith(piece[:length], total):
            return None
        lengths.append((total + length, broken))
        if piece and not broken:
            anchor, done, total = done, end, total + length
    return lengths if not lengths or lengths[-1][1] or total == len(text) else None


def _spans(tokenizer: Any, ids: list[int], groups: list, lengths: list, text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = 0
    for number, ((end, is_bytes), (length, broken)) in enumerate(zip(groups, lengths, strict=True)):
        last = number == len(groups) - 1
        stop = len(text) if last else min(length + broken, len(text))
        stop = max(start, stop)
        spans += _byte_spans(tokenizer, ids[len(spans) : end], text[start:stop], start) if is_bytes else [(start, stop)]
        start = stop if last else max(start, min(length, len(text)))
    return spans


def _byte_spans(tokenizer: Any, ids: list[int], piece: str, start: int) -> list[tuple[int, int]]:
    """Spans of byte tokens within the text of their run: each gets its character."""
    values = bytes(int(_BYTE.fullmatch(token)[1], 16) for token in tokenizer.convert_ids_to_tokens(ids))
    widths = [len(character.encode()) for character in piece]
    if piece.encode() == values:
        owners = [i for i, width in enumerate(widths) for _ in range(width)]
        return [(start + i, start + i + 1) for i in owners]
    if len(piece) == len(ids):  # bytes that are no text: one replacement character each
        return [(start + i, start + i + 1) for i in range(len(ids))]
    return [(start, start + len(piece))] * len(ids)
