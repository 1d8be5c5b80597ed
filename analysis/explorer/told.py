"""One answer that an explorer holds, and what can be asked of it without its model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from analysis.explorer.data import explorer_data, packed_maps, raw_maps
from analysis.explorer.gallery import not_kept
from core.attention import to_grid
from core.errors import GroundingError
from core.options import GroundOptions
from core.phrases import Phrase, phrase_at
from core.pipeline import Grounding, ground


@dataclass(frozen=True, eq=False)
class Told:
    """A grounded answer with its picture.

    Attributes:
        grounding: with its maps.
        image: the picture, upright.
        prompt: what was asked.
        title: of the answer in a list.
        lmm: the model that was asked; None for a record.
    """

    grounding: Grounding
    image: Image.Image
    prompt: str
    title: str
    lmm: Any = None

    @property
    def model(self) -> str:
        """Name of the model that looked."""
        return str(self.grounding.generation.model.get("name_or_path", ""))

    def data(self) -> dict[str, Any]:
        """The answer as the explorer shows it."""
        return explorer_data(self.grounding, self.image, prompt=self.prompt, title=self.title)

    def find(self, words: str) -> tuple[int, ...]:
        """The tokens that words are grounded by: the central noun's of a phrase, else all that spell them.

        Raises:
            GroundingError: the answer does not say them.
        """
        for phrase in self.grounding.phrases:
            if phrase.text.casefold() == words.strip().casefold():
                return phrase.tokens
        generation, wanted = self.grounding.generation, words.strip()
        said = re.search(re.escape(wanted), generation.text, re.IGNORECASE) if wanted else None
        found = None if said is None else phrase_at(generation.text, generation.token_spans, said.span())
        if found is None:
            raise GroundingError(f"the answer does not say {words!r}; it says {generation.text!r}")
        return found.tokens

    def brightest(self) -> tuple[int, ...]:
        """The tokens of the phrase whose map has the highest value on the view.

        Raises:
            GroundingError: the answer has no phrase.
        """
        if not self.grounding.phrases:
            raise GroundingError(f"the answer names nothing: {self.grounding.generation.text!r}; choose words yourself")
        highest = to_grid(self.grounding.maps, self.grounding.view).amax((1, 2))
        return self.grounding.phrases[int(highest.argmax())].tokens

    def phrase(self, tokens: Sequence[int]) -> Phrase:
        """Chosen tokens as one phrase; that of the answer, where they are its own.

        Raises:
            GroundingError: no tokens, or one outside the answer.
        """
        generation = self.grounding.generation
        count = len(generation.token_spans)
        if not tokens or not all(0 <= token < count for token in tokens):
            raise GroundingError(f"tokens {list(tokens)} must name at least one of 0..{count - 1}")
        known = [each for each in self.grounding.phrases if sorted(each.tokens) == sorted(tokens)]
        if known:
            return known[0]
        spans = generation.token_spans[sorted(tokens)].tolist()
        span = (min(start for start, _ in spans), max(end for _, end in spans))
        said = " ".join(generation.text[start:end].strip() for start, end in spans)
        return Phrase(said, span, said, span, tuple(sorted(tokens)))

    def of_tokens(self, tokens: Sequence[int], options: GroundOptions, *, segmenter: Any = None) -> Grounding:
        """Chosen tokens grounded as one phrase: its map, point and, with a segmenter, its masks.

        Raises:
            GroundingError: tokens outside the answer, or options that it does not hold.
        """
        # what was read from the model stays: its row, and the mean of the heads where single ones were not kept
        generation = self.grounding.generation
        if options.selects_heads and generation.attention_per_head is None:
            if (options.layers, options.heads) != (self.grounding.options.layers, self.grounding.options.heads):
                raise not_kept()
            options = replace(options, layers=None, heads=None)
        phrase = self.phrase(tokens)
        return ground(generation, self.image, segmenter=segmenter, nlp=None, phrases=[phrase], options=options)

    def head_maps(self, options: GroundOptions) -> dict[str, Any]:
        """Each token's map, of the chosen heads, as the explorer reads maps."""
        chosen = replace(self.grounding.options, layers=options.layers, heads=options.heads)
        return packed_maps(raw_maps(replace(self.grounding, options=chosen)))

    def same_words(self, other: Told, tokens: Sequence[int]) -> list[int]:
        """This answer's tokens that share a character with some of another's, whose text is the same."""
        if other is self:
            return list(tokens)
        spans = other.grounding.generation.token_spans[list(tokens)].tolist()
        mine = self.grounding.generation.token_spans.tolist()
        return [i for i, (a, b) in enumerate(mine) if a < b and any(a < end and b > start for start, end in spans)]
