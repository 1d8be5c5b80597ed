"""The order of the samples in an epoch: a function of the seed and the epoch's number only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def grouped_order(
    lengths: list[int], has_image: list[bool], *, batch: int, group: int, generator: torch.Generator
) -> list[int]:
    """Every index once, so that an optimiser step holds one modality, and its batches about as many words each.

    Steps are drawn without regard to length, so that one has about as many words as another; the samples of a step are
    sorted by length and dealt to its batches, each to the one with the fewest words so far.

    Args:
        lengths: of the samples.
        has_image: their modality.
        batch: samples of a batch: each run of `batch` indices is one.
        group: samples of an optimiser step, a multiple of `batch`.
        generator: on the CPU.

    Returns:
        The indices: whole steps in random order; then what is left of both modalities together, in the data's order.
        Of a single modality the steps stay in the order in which they were drawn.

    Source: LLaVA's `get_modality_length_grouped_indices`, whose batches are those of one device, and whose steps are
    its megabatches: devices x accumulation steps x batch. With the same generator the order is the same, but for data
    without any picture, whose lengths it takes as negative.
    """
    steps = [
        _steps([number for number, image in enumerate(has_image) if image is kind], lengths, batch, group, generator)
        for kind in (True, False)
        if kind in has_image
    ]
    if len(steps) < 2:
        return [number for kind in steps for step in kind for number in step]
    whole = [step for kind in steps for step in kind[:-1]]
    left = sorted(number for kind in steps for number in kind[-1])
    shuffled = torch.randperm(len(whole), generator=generator).tolist()
    return [number for place in shuffled for number in whole[place]] + left


def _steps(
    members: list[int], lengths: list[int], batch: int, group: int, generator: torch.Generator
) -> list[list[int]]:
    """The members in random steps of `group`, each dealt to its batches."""
    shuffled = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
    return [
        _dealt(shuffled[start : start + group], lengths, hands=group // batch)
        for start in range(0, len(shuffled), group)
    ]


def _dealt(step: list[int], lengths: list[int], *, hands: int) -> list[int]:
    """The step's samples hand by hand; in turn where they cannot be divided evenly."""
    order = sorted(step, key=lambda number: lengths[number], reverse=True)
    if len(order) % hands:
        return [number for first in range(hands) for number in order[first::hands]]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    words = [0] * hands
    for number in order:
        hand = min((one for one in range(hands) if len(dealt[one]) < len(order) // hands), key=words.__getitem__)
        dealt[hand].append(number)
        words[hand] += lengths[number]
    return [number for hand in dealt for number in hand]


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
