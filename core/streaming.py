"""An answer as it is written, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from core.spans import decode_with_spans


class AnswerStream:
    """A streamer of `LMM.generate` that tells the text so far after every token.

    Args:
        tokenizer: the model's.
        tell: called with the text, without special tokens; the last call has the whole answer.

    >>> from core import load_lmm
    >>> from core.streaming import AnswerStream
    >>> lmm, heard = load_lmm("embedded", device="cpu"), []
    >>> stream = AnswerStream(lmm.processor.tokenizer, heard.append)
    >>> answer = lmm.generate("embedded", "How many objects are there?", streamer=stream)
    >>> heard[0], heard[-1] == answer.text
    ('In', True)
    """

    def __init__(self, tokenizer: Any, tell: Callable[[str], object]):
        self._tokenizer, self._tell = tokenizer, tell
        self._ids: list[int] | None = None  # None until the prompt has come

    def put(self, value: Tensor) -> None:
        """The prompt's ids [1, s], then each new token [1]."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._tell(decode_with_spans(self._tokenizer, self._ids)[0])

    def end(self) -> None:
        """Another answer may follow."""
        self._ids = None
