"""Tensors of a checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from core.errors import GroundingError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or with an index and in shards


def read_tensors(source: str, revision: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint's weights, whole or in shards, on the CPU.

    Raises:
        GroundingError: no weights there.
    """
    from transformers.utils import cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    for name in WEIGHTS:
        whole = cached_file(source, name, **options)
        index = None if whole else cached_file(source, f"{name}.index.json", **options)
        if whole or index:
            files = [whole] if whole else get_checkpoint_shard_files(source, index, revision=revision)[0]
            for file in files:
                yield from tensors_of(file).items()
            return
    raise GroundingError(
        f"{source!r} has no weights; give a directory with {' or '.join(WEIGHTS)}, whole or in shards with an index"
    )


def tensors_of(file: str | Path) -> dict[str, Tensor]:
    """One file of weights, mapped into memory."""
    if str(file).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
