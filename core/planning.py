"""Images planned into batches by length, under a memory budget that shrinks where a batch did not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core.decoding import answer_ids
from core.errors import GroundingError

if TYPE_CHECKING:
    from PIL import Image

    from core.lmm import LMM

AUTO = "auto"
SHARE = 0.5  # of the free memory that a batch is planned into
PADDING = 0.25  # of a batch's longest sample that may be padding in its shortest
MOST = 64  # images in a batch, and images looked at ahead
PIXELS_AHEAD = 2**27  # of images held while they are planned: 400 MB
ACTIVATIONS = 12  # vectors of the decoder's width that a position holds at a time, beside those inside its MLP


class FixedPlan:
    """Batches of so many images in their own order.

    Raises:
        GroundingError: less than one.
    """

    def __init__(self, size: Any):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise GroundingError(f"batch_size must be at least 1 or {AUTO!r}, not {size!r}")
        self.look_ahead, self.pixels_ahead = size, math.inf

    def batches(self, opened: Mapping[str, Image.Image]) -> list[list[str]]:
        """The images as one batch."""
        return [list(opened)] if opened else []

    def smaller(self, ids: Sequence[str]) -> bool:
        """Whether to go on with smaller batches after one did not fit into memory: no, this size was asked for."""
        return False


class LengthPlan:
    """Batches of images with about as many tokens, as many as the memory holds by a rough count.

    Args:
        lmm: the model.
        prompt_of, answer_of: by id, the prompt, and the answer that is given or None.
        max_new_tokens: longest answer that is not given.
        per_head: whether each head's maps are kept.
        budget: bytes; None takes `SHARE` of what is free on the model's device.
    """

    def __init__(
        self,
        lmm: LMM,
        *,
        prompt_of: Callable[[str], str],
        answer_of: Callable[[str], Any],
        max_new_tokens: int,
        per_head: bool,
        budget: int | None = None,
    ):
        self.look_ahead, self.pixels_ahead = MOST, PIXELS_AHEAD
        self.budget = int(SHARE * free_memory(lmm.device)) if budget is None else budget
        self._lmm, self._prompt_of, self._answer_of = lmm, prompt_of, answer_of
        self._new, self._per_head = max_new_tokens, per_head
        self._prompt_lengths: dict[Hashable, int] = {}
        self._lengths: dict[str, tuple[int, int]] = {}

    def batches(self, opened: Mapping[str, Image.Image]) -> list[list[str]]:
        """Ids in batches, the longest first."""
        self._lengths = {id: self._length(id, image) for id, image in opened.items()}
        return self._split(list(opened))

    def smaller(self, ids: Sequence[str]) -> bool:
        """Whether to go on with smaller batches after one did not fit into memory; `again` plans them half as large."""
        self.budget = min(self.budget, self._bytes(ids)) // 2
        return len(ids) > 1

    def again(self, ids: Sequence[str]) -> list[list[str]]:
        """Batches of ids that `batches` has seen, under the budget as it is now."""
        return self._split(ids)

    def _split(self, ids: Sequence[str]) -> list[list[str]]:
        batches: list[list[str]] = []
        for id in sorted(ids, key=lambda id: -sum(self._lengths[id])):
            batch = batches[-1] if batches else []
            longest = sum(self._lengths[batch[0]]) if batch else 0
            fits = batch and len(batch) < MOST and self._bytes([*batch, id]) <= self.budget
            if fits and sum(self._lengths[id]) >= (1 - PADDING) * longest:
                batch.append(id)
            else:
                batches.append([id])
        return batches

    def _length(self, id: str, image: Image.Image) -> tuple[int, int]:
        """Tokens of the prompt and of the answer; those of a picture depend on its size alone."""
        try:
            prompt, answer = self._prompt_of(id), self._answer_of(id)
            key = (image.size, prompt)
            if key not in self._prompt_lengths:
                self._prompt_lengths[key] = self._lmm.prompt_length(image, prompt)
            new = self._new if answer is None else len(answer_ids(answer, self._lmm.family))
        except GroundingError:  # it comes again, with the id, when the image's turn comes
            return 1, 1
        return self._prompt_lengths[key], new

    def _bytes(self, ids: Sequence[str]) -> int:
        """What a batch holds beside the weights, about: keys and values, one layer's activations, masks, and maps."""
        config, dtype = self._lmm.model.config.get_text_config(), self._lmm.model.dtype
        layers, heads, width = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or width // heads
        inside = getattr(config, "intermediate_size", None) or 4 * width
        vectors = 2 * layers * key_heads * head + ACTIVATIONS * width + 3 * inside
        prompt, new = (max(self._lengths[id][part] for id in ids) for part in (0, 1))
        total = prompt + new
        maps = 4 * new * prompt * (layers * heads if self._per_head and self._lmm.device.type == "cpu" else 1)
        return len(ids) * (total * vectors * dtype.itemsize + 4 * prompt * total + maps)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on CUDA, MPS, in torch's CPU allocator, or in Python."""
    said = str(error).lower()
    wanting = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in wanting)
    )


def release_memory() -> None:
    """Give back what torch's allocators keep, so that a smaller batch finds room in one piece."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; elsewhere than on CUDA those of the machine."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    listing = Path("/proc/meminfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    pages = os.sysconf("SC_PHYS_PAGES") // 4 if "SC_PHYS_PAGES" in names else 2**20
    return pages * (os.sysconf("SC_PAGE_SIZE") if "SC_PAGE_SIZE" in names else 4096)
