"""Answers whose earlier words cannot be relied on, so that a thing that is named again has to be looked at again.

A language model that was pre-trained on text alone goes on from its own words: the picture decides what is named first,
and everything that is named again is copied. In some of stage 2's samples the names that the model reads of the answer
are therefore swapped for others of their kind, and what is learnt there is to say the right name all the same wherever
one is said again. Only the picture tells it. No box, point or mask is involved.

In these samples nothing else is learnt: what is named first depends on which things were named before, and so does the
end of the list, and both have to be learnt from answers that are right.

Source: ours. Word dropout (Bowman et al. 2016, "Generating sentences from a continuous space", section 3.1) weakens a
decoder in this way, with the unknown word in the place of a false one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from core.errors import GroundingError
from core.training.templates import IGNORE, Tokens
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS


@dataclass(frozen=True)
class WordSwaps:
    """How often words are swapped.

    Fields:
        samples: share of the samples in which it happens.
        words: share of the names in such a sample for which another is drawn (at times the same).

    Raises:
        GroundingError: a share outside 0..1.
    """

    samples: float = 0.5
    words: float = 0.5

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise GroundingError(f"the share {name} of swapped words lies in 0..1, got {share}")


def name_ids(tokenizer: Any) -> tuple[Int[Tensor, " _"], ...]:
    """Token ids of the categories and of the colours, each kind for itself; names of several tokens are left out."""
    kinds = []
    for words in (CATEGORIES, tuple(COLOURS)):
        ids = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in words]
        kinds.append(torch.tensor([number for number in ids if number not in (None, tokenizer.unk_token_id)]).long())
    return tuple(kinds)


def swap_words(
    tokens: Tokens, kinds: Sequence[Int[Tensor, " _"]], rng: np.random.Generator, swaps: WordSwaps
) -> Tokens:
    """The sample itself, or one whose answers name other things than they should.

    Args:
        tokens: a conversation.
        kinds: ids of the names, as `name_ids` gives them; a name is swapped for one of its own kind.
        rng: decides whether, where and for what.
        swaps: the shares.

    Returns:
        Ids in which names within the answers may be false, and the true labels of those names that the answers of this
        conversation have said before; everything else is `IGNORE`. A conversation that says no name twice stays as it
        is.
    """
    answer = tokens.labels != IGNORE
    again = _said_before(tokens.ids, answer, kinds)
    if rng.random() >= swaps.samples or not again.any():
        return tokens
    ids = tokens.ids.clone()
    for names in kinds:
        chosen = answer & torch.isin(tokens.ids, names) & torch.from_numpy(rng.random(len(ids)) < swaps.words)
        ids[chosen] = names[torch.from_numpy(rng.integers(len(names), size=int(chosen.sum())))]
    return Tokens(ids, torch.where(again, tokens.labels, IGNORE))


def _said_before(ids: Int[Tensor, " s"], answer: Tensor, kinds: Sequence[Tensor]) -> Tensor:
    """Which tokens are names that an answer said earlier."""
    again, said = torch.zeros_like(answer), set()
    for place in (answer & torch.isin(ids, torch.cat(list(kinds)))).nonzero()[:, 0].tolist():
        again[place] = int(ids[place]) in said
        said.add(int(ids[place]))
    return again
