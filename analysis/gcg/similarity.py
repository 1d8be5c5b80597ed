"""How alike two phrases are, by an encoder of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from core.text_encoders import TextEncoder


class PhraseSimilarity:
    """Cosine similarity of phrases; each is encoded once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Encode what is new, together."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = np.asarray(self.encoder.encode(new), dtype=np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._known |= dict(zip(new, vectors / np.where(lengths > 0, lengths, 1), strict=True))

    def matrix(self, first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, "q h"]:
        """Every one of the first with every one of the second; 0 where a text has no vector."""
        self.learn([*first, *second])
        if not first or not second:
            return np.zeros((len(first), len(second)))
        return np.stack([self._known[text] for text in first]) @ np.stack([self._known[text] for text in second]).T
