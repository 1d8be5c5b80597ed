"""The reference: transformers' own generation with eager attention, its weights read off the attention modules.

Of each layer's square only the rows asked for are kept, so the reference needs the memory of one layer's square, where
`output_attentions=True` holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.batch import Batch
from core.capture import model_lock
from core.decoding import generation_options
from core.errors import GroundingError
from core.lmm import LMM


@dataclass(frozen=True, eq=False)
class Reference:
    """What transformers alone said.

    Attributes:
        sequence: int64 [s + t + 1], prompt and answer, one token more than asked for.
        prompt: s, the number of tokens of the prompt.
        rows: float32 [t + 2, l, n, k], the attention rows of the positions s - 2 to s + t - 1.
    """

    sequence: Tensor
    prompt: int
    rows: Tensor

    def shifted(self, count: int, shift: int) -> Tensor:
        """The rows [count, l, n, k] that lie `shift` positions behind those that predict the answer's tokens."""
        return self.rows[1 + shift : 1 + shift + count]


@contextmanager
def switched(lmm: LMM, implementation: str | None) -> Iterator[None]:
    """The decoder with another attention implementation inside the context; None leaves it as it is."""
    config = lmm.family.text_model.config
    previous = config._attn_implementation
    if implementation is None or implementation == previous:
        yield
        return
    with model_lock(lmm.model):
        try:
            lmm.model.set_attn_implementation({"text_config": implementation})
            yield
        finally:
            lmm.model.set_attn_implementation({"text_config": previous})


def eager_generation(lmm: LMM, batch: Batch, new_tokens: int, options: dict[str, Any]) -> Reference:
    """Let transformers generate on a batch of one, with eager attention.

    Raises:
        GroundingError: the attention modules return no weights.
    """
    columns = batch.columns[0]
    reader = _Reader(columns)
    modules = [m for m in lmm.family.text_model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    given = generation_options(lmm.family, new_tokens + 1, {k: v for k, v in options.items() if k != "max_new_tokens"})
    with switched(lmm, "eager"), torch.no_grad():
        handles = [module.register_forward_hook(reader) for module in modules]
        try:
            sequence = lmm.model.generate(**batch.inputs, **given)[0].cpu()
        finally:
            for handle in handles:
                handle.remove()
    if not reader.rows:
        raise GroundingError("transformers' attention modules of this model return no weights to compare with")
    rows = torch.stack([torch.cat(reader.rows[layer]) for layer in sorted(reader.rows)], dim=1)
    return Reference(sequence, batch.length, rows)


class _Reader:
    """A forward hook that keeps the last two rows of a prompt and every row after it, at the visual columns."""

    def __init__(self, columns: Tensor):
        self.columns = columns
        self.rows: dict[int, list[Tensor]] = {}
        self.seen: dict[int, int] = {}

    def __call__(self, module: nn.Module, _: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            return
        layer, (count, keys) = module.layer_idx, weights.shape[2:]
        self.seen[layer] = self.seen.get(layer, 0) + count
        index = self.columns.to(weights.device) - (self.seen[layer] - keys)  # a sliding cache dropped the oldest keys
        kept = weights[0, :, -2:].index_select(-1, index.clamp(min=0)) * (index >= 0)
        self.rows.setdefault(layer, []).append(kept.transpose(0, 1).float().cpu())
