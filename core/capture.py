"""Attention rows beside the fast attention: the model computes as always, only the wanted rows are computed again."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor, nn

from core.errors import GroundingError

ROWS_AT_ONCE = 32  # rows computed in one product per layer
SCORES_AT_ONCE = 8_000_000  # at most about so many attention values in memory at once

_serial = itertools.count()
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def model_lock(model: nn.Module) -> threading.RLock:
    """The lock that keeps two captures off one model; other models have their own."""
    with _locks_guard:
        return _locks.setdefault(model, threading.RLock())


@dataclass
class _Layer:
    """What is known of one decoder layer while the model runs."""

    seen: int = 0  # positions that went through
    rows: int = 0  # wanted rows that were computed
    key: Tensor | None = None  # [b, kv heads, keys, d], of the last call that had a wanted row
    end: int = 0  # absolute position after the newest of those keys
    pending: list[Tensor] = field(default_factory=list)  # query rows [b, n, 1, d] that wait for their product
    scaling: float = 1.0
    softcap: float | None = None
    window: int | None = None


class RowRecorder:
    """Attention rows of the positions `first, first + 1, ...`, reduced to their visual columns as they are computed.

    Holds the tiny query rows of at most `ROWS_AT_ONCE` steps and a reference to each layer's newest keys (which the
    model's cache holds anyway). What it accumulates is [rows, k] per sample, or [rows, l, n, k].

    Args:
        columns: per sample of the batch, the absolute positions int64 [k] of its visual tokens.
        mask: bool [b, s]; False where a position is padding. Positions after s are not.
        first: absolute position of the first wanted row.
        last: absolute position of the last wanted row; None for every row from the first on.
        layers: number of decoder layers l.
        prefix: int64 [b], the position up to which all positions attend to each other; None where rows are causal.
        per_head: keep each layer and head instead of their mean.
    """

    def __init__(
        self,
        *,
        columns: tuple[Tensor, ...],
        mask: Tensor,
        first: int,
        layers: int,
        last: int | None = None,
        prefix: Tensor | None = None,
        per_head: bool = False,
    ):
        self._columns, self._mask = columns, mask
        self._padded = not bool(mask.all())
        self._first, self._last, self._prefix = first, last, prefix
        self._layers = [_Layer() for _ in range(layers)]
        self._per_head = per_head
        self._heads = 0
        self._blocks: list[list[Tensor]] = []  # per ROWS_AT_ONCE rows, per sample: sums [c, k] or values [c, l, n, k]

    def observe(
        self, layer: int, query: Tensor, key: Tensor, *, scaling: float, softcap: float | None, window: int | None
    ) -> None:
        """Take note of one attention call: query [b, n, q, d] of the newest q positions, key [b, kv heads, keys, d]."""
        state = self._layers[layer]
        count = query.shape[2]
        start = max(self._first - state.seen, 0)
        stop = count if self._last is None else min(count, self._last + 1 - state.seen)
        state.seen += count
        if start >= stop:
            return
        slides = window is not None and state.seen >= window  # the keys of earlier rows are about to be dropped
        if slides or stop - start > 1:
            self._flush(layer)
        state.key, state.end = key, state.seen
        state.scaling, state.softcap, state.window = scaling, softcap, window
        if stop - start > 1:
            self._compute(layer, query[:, :, start:stop])
            state.key = None
            return
        # the clone of a prompt's last row does not keep the whole prompt's queries alive
        state.pending.append(query if count == 1 else query[:, :, start:stop].clone())
        if slides or (state.rows + len(state.pending)) % ROWS_AT_ONCE == 0:
            self._flush(layer)

    def finish(self) -> list[tuple[Tensor, Tensor | None]]:
        """Compute what is pending; per sample (mean [rows, k], [rows, l, n, k] or None), float32 on the CPU."""
        for layer in range(len(self._layers)):
            self._flush(layer)
            self._layers[layer].key = None
        counts = sorted({state.rows for state in self._layers})
        if len(counts) != 1:
            raise GroundingError(
                f"the {len(self._layers)} decoder layers showed {counts} attention rows; they must show the same "
                "number, so this model's attention does not go through transformers' attention interface"
            )
        return [self._gather(sample, counts[0]) for sample in range(len(self._columns))]

    def _gather(self, sample: int, rows: int) -> tuple[Tensor, Tensor | None]:
        k, layers = len(self._columns[sample]), len(self._layers)
        shape = (rows, layers, self._heads, k) if self._per_head else (rows, k)
        result = torch.empty(shape, dtype=torch.float32)
        for number, block in enumerate(self._blocks):
            part = result[number * ROWS_AT_ONCE : (number + 1) * ROWS_AT_ONCE]
            part.copy_(block[sample][: len(part)])
            block[sample] = block[sample][:0]  # free each block as it is copied
        if self._per_head:
            return result.mean(dim=(1, 2)), result
        return result.div_(max(layers * self._heads, 1)), None

    def _flush(self, layer: int) -> None:
        state = self._layers[layer]
        if state.pending:
            rows = state.pending[0] if len(state.pending) == 1 else torch.cat(state.pending, dim=2)
            state.pending = []
            self._compute(layer, rows)

    @torch.no_grad()
    def _compute(self, layer: int, rows: Tensor) -> None:
        """The next wanted rows [b, n, c, d] against the newest keys."""
        state = self._layers[layer]
        self._heads = rows.shape[1]
        at_once = max(1, SCORES_AT_ONCE // (rows.shape[0] * rows.shape[1] * state.key.shape[2]))
        done = 0
        while done < rows.shape[2]:
            room = ROWS_AT_ONCE - state.rows % ROWS_AT_ONCE  # never across the border of a block
            part = rows[:, :, done : done + min(at_once, room)]
            self._store(layer, _attend(part, state, self._allowed(state, part.shape[2])))
            done += part.shape[2]

    def _allowed(self, state: _Layer, count: int) -> Tensor | None:
        """bool [b or 1, c, keys]: the keys that each of the next rows may see; None if all."""
        keys, device = state.key.shape[2], state.key.device
        offset = state.end - keys  # a sliding cache has dropped the oldest positions
        position = self._first + state.rows
        if not self._padded and count == 1 and position == state.end - 1 and state.window is None:
            return None
        own = torch.arange(position, position + count, device=device)[:, None]
        column = torch.arange(offset, state.end, device=device)[None, :]
        allowed = column <= own
        if state.window is not None:
            allowed = allowed & (column > own - state.window)
        allowed = allowed[None]
        if self._prefix is not None:  # a window does not hold inside a prefix
            ends = self._prefix.to(device)[:, None, None]
            allowed = allowed | ((own < ends) & (column < ends))
        if self._padded:
            mask = self._mask.to(device)
            real = torch.ones(mask.shape[0], max(state.end, mask.shape[1]), dtype=torch.bool, device=device)
            real[:, : mask.shape[1]] = mask
            allowed = allowed & real[:, None, offset : state.end]
        return allowed

    def _store(self, layer: int, weights: Tensor) -> None:
        """Select the visual columns of the weights [b, n, c, keys] and add them to their block."""
        state = self._layers[layer]
        offset, count = state.end - weights.shape[3], weights.shape[2]
        block, row = divmod(state.rows, ROWS_AT_ONCE)
        if block == len(self._blocks):
            self._blocks.append([self._empty(len(c), weights.device) for c in self._columns])
        kept = weights if self._per_head else weights.sum(dim=1)
        for sample, columns in enumerate(self._columns):
            index = columns.to(weights.device) - offset
            values = kept[sample].index_select(-1, index.clamp(min=0))
            if offset > 0:
                values = values * (index >= 0)  # visual tokens that left the window get nothing
            target = self._blocks[block][sample][row : row + count]
            if self._per_head:
                target[:, layer] = rearrange(values, "n c k -> c n k").to(target.device)
            else:
                target += values.to(target.device)
        state.rows += count

    def _empty(self, k: int, device: torch.device) -> Tensor:
        if self._per_head:
            return torch.zeros(ROWS_AT_ONCE, len(self._layers), self._heads, k)
        return torch.zeros(ROWS_AT_ONCE, k, device=device)


def _attend(rows: Tensor, state: _Layer, allowed: Tensor | None) -> Tensor:
    """Softmax over all keys, float32 [b, n, c, keys]; query head h reads key head h // groups."""
    count, kv_heads = rows.shape[2], state.key.shape[1]
    grouped = rearrange(rows, "b (kv g) c d -> b kv (g c) d", kv=kv_heads)
    scores = grouped.float() @ state.key.float().transpose(2, 3)
    scores = rearrange(scores, "b kv (g c) s -> b (kv g) c s", c=count).mul_(state.scaling)
    if state.softcap is not None:
        scores = torch.tanh(scores / state.softcap) * state.softcap
    if allowed is not None:
        scores.masked_fill_(~allowed[:, None], -torch.inf)
    return torch.softmax(scores, dim=-1)


@contextmanager
def recording(model: nn.Module, text_model: nn.Module, recorder: RowRecorder) -> Iterator[None]:
    """Show the recorder every decoder self-attention call that this thread makes on the model inside the context.

    The model's attention function and mask function stay the ones it was loaded with (scaled dot-product attention
    where that was a flash kernel, whose wrapper looks its name up in the configuration). Afterwards, also after an
    exception, the model's configuration and transformers' registries are as before.

    Raises:
        GroundingError: the model's attention cannot be switched through transformers' attention interface.

    Source: transformers' AttentionInterface and AttentionMaskInterface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    config, owner = text_model.config, threading.get_ident()
    name = f"rowcapture{next(_serial)}"
    with model_lock(model):
        previous = config._attn_implementation
        delegated = "sdpa" if previous is None or "flash" in previous else previous
        fallback = _attention_function(text_model, delegated)
        modules = [m for m in text_model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
        delegates = {module: _attention_function(module, delegated) for module in modules}

        def attend(module, query, key, value, attention_mask, *args, **kwargs):
            result = delegates.get(module, fallback)(module, query, key, value, attention_mask, *args, **kwargs)
            if module in delegates and threading.get_ident() == owner:
                scaling = kwargs.get("scaling")
                recorder.observe(
                    module.layer_idx,
                    query,
                    key,
                    scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                    softcap=kwargs.get("softcap"),
                    window=kwargs.get("sliding_window"),
                )
            return result

        AttentionInterface.register(name, attend)
        if delegated in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[delegated])
        try:
            model.set_attn_implementation({"text_config": name})
            if config._attn_implementation != name:
                raise GroundingError(
                    f"{type(model).__name__} keeps the attention {config._attn_implementation!r} of its text model; "
                    "only models whose text_config takes part in set_attn_implementation can be captured"
                )
            yield
        finally:
            model.set_attn_implementation({"text_config": previous})
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def _attention_function(module: nn.Module, implementation: str) -> Callable:
    """The function that the module's own modelling file, or that of the class it inherits from, runs for an
    implementation.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    files = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    modeling = next((file for file in files if hasattr(file, "eager_attention_forward")), files[0])
    interface = getattr(modeling, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    return interface.get_interface(implementation, getattr(modeling, "eager_attention_forward", None))
