"""Which annotated category a noun phrase speaks of, by cosine similarity of word vectors."""

from __future__ import annotations

from typing import Any

from core.errors import GroundingError
from core.phrases import similarity

MATCHES = ("head", "phrase")


THRESHOLD = 0.5


class CategoryMatcher:
    """Finds a phrase's best category among those annotated in its image, by cosine similarity of word vectors.

    Args:
        nlp: a spaCy pipeline with word vectors.
        by: compare the phrase's central noun ("head", as the released code does) or all its words ("phrase").
        threshold: lowest similarity that counts as a match.

    Raises:
        GroundingError: unknown `by`, or a threshold outside -1..1.

    Source: section 4.1; head noun and 0.5 from the released code.
    """

    def __init__(self, nlp: Any, *, by: str = "head", threshold: float = THRESHOLD) -> None:
        if by not in MATCHES:
            raise GroundingError(f"matching by {by!r} is not known; choose one of {', '.join(MATCHES)}")
        if not -1 <= threshold <= 1:
            raise GroundingError(
                f"the similarity threshold is {threshold}; cosines lie in -1..1 (the paper's code uses {THRESHOLD})"
            )
        self.nlp, self.by, self.threshold = nlp, by, threshold
        self._known: dict[tuple[str, str], float] = {}

    def similarity(self, words: str, category: str) -> float:
        """Cosine of the two texts' mean vectors, lower-cased; remembered, since categories repeat."""
        pair = (words.lower(), category.lower())
        if pair not in self._known:
            self._known[pair] = similarity(self.nlp, *pair)
        return self._known[pair]

    def best(self, phrase: Any, categories: dict[int, str]) -> tuple[int | None, float]:
        """(category id, similarity) of the best category, the first of equals; None below the threshold."""
        words = phrase.root if self.by == "head" else phrase.text
        scored = [(self.similarity(words, name), category_id) for category_id, name in categories.items()]
        if not scored:
            return None, 0.0
        score, category_id = max(scored, key=lambda pair: pair[0])
        return (category_id if score >= self.threshold else None), score
