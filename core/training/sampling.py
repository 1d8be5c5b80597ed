"""The order of the samples in an epoch: a function of the seed and the epoch's number only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

POOL = 50  # batches that are sorted by length together, as in transformers' LengthGroupedSampler


def grouped_order(
    lengths: list[int], has_image: list[bool], *, batch: int, group: int, generator: torch.Generator
) -> list[int]:
    """Every index once, so that batches hold one modality and similar lengths.

    Args:
        lengths: of the samples.
        has_image: their modality.
        batch: samples per device and forward pass: each run of `batch` indices is one.
        group: samples per optimiser step, a multiple of `batch`; whole groups hold one modality, so all devices do the
            same work in a step.
        generator: on the CPU.

    Returns:
        The indices: whole groups in random order, then what is left of both modalities. At most one batch of an epoch
        is mixed.

    Source: LLaVA's `get_modality_length_grouped_indices`, which sorts within a group; here the lengths of `POOL` groups
    are sorted together.
    """
    groups: list[list[int]] = []
    left: list[list[int]] = []
    for modality in (True, False):
        members = torch.tensor(
            [number for number, image in enumerate(has_image) if image is modality], dtype=torch.int64
        )
        shuffled = members[torch.randperm(len(members), generator=generator)].tolist()
        whole = len(shuffled) // group * group
        for start in range(0, whole, POOL * group):
            pool = sorted(shuffled[start : min(start + POOL * group, whole)], key=lambda i: lengths[i], reverse=True)
            groups += [pool[first : first + group] for first in range(0, len(pool), group)]
        left.append(sorted(shuffled[whole:], key=lambda i: lengths[i], reverse=True))
    order = [index for place in torch.randperm(len(groups), generator=generator).tolist() for index in groups[place]]
    full = [len(rest) // batch * batch for rest in left]
    order += [index for rest, count in zip(left, full, strict=True) for index in rest[:count]]
    return order + [index for rest, count in zip(left, full, strict=True) for index in rest[count:]]


class EpochSampler(Sampler):
    """Indices in a random order that depends on `seed` and the epoch, grouped where `group` is not None.

    Args:
        lengths, has_image, batch, group: as for `grouped_order`.
    """

    def __init__(
        self, lengths: list[int], has_image: list[bool], *, batch: int, group: int | None = None, seed: int = 0
    ):
        self.lengths, self.has_image, self.batch, self.group, self.seed = lengths, has_image, batch, group, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each pass, so that a resumed run goes through the same order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.group is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(
            grouped_order(self.lengths, self.has_image, batch=self.batch, group=self.group, generator=generator)
        )
