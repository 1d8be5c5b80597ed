"""METEOR 1.5 and CIDEr of the captions, in sums over images, so that any set of images has its score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from analysis.gcg import java

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5, English, ranking task
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of exact, stem, synonym and paraphrase matches


def meteor_scores(statistics: Float[np.ndarray, "texts 23"]) -> Float[np.ndarray, " texts"]:
    """METEOR 1.5 of texts from their sufficient statistics (`meteor_sums`); of a set of texts, from their sum.

    The numbers are: words and function words of candidate and reference; for each of four kinds of match the content
    words of candidate and reference, then the function words; chunks; matched words of both.

    Returns:
        In 0..1; 0 without a match.

    Source: Denkowski and Lavie 2014; equal to the scores that the stock program prints.
    """
    words = statistics[..., :4]
    matches = statistics[..., 4:20].reshape(-1, 4, 4)
    chunks, matched = statistics[..., 20], statistics[..., 21:23]
    total = np.tensordot(matches, np.asarray(WEIGHTS), axes=([-2], [0]))  # content and function words of both
    shares = []
    for side in (0, 1):
        right = DELTA * total[..., side] + (1 - DELTA) * total[..., 2 + side]
        of = DELTA * (words[..., side] - words[..., 2 + side]) + (1 - DELTA) * words[..., 2 + side]
        shares.append(_divide(right, of))
    precision, recall = shares
    mean = _divide(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1 - GAMMA * _divide(chunks, matched.mean(axis=-1)) ** BETA)


def meteor_sums(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, timeout: float | None = None
) -> Float[np.ndarray, "texts 23"]:
    """`java.meteor_statistics`, float [texts, 23], ready to be added up: like the stock program, a text that is its
    reference word for word has no chunk, since nothing of it is fragmented.

    Raises:
        GroundingError: as `java.meteor_statistics`.
    """
    statistics = java.meteor_statistics(candidates, references, timeout=timeout)
    matches = statistics[:, 4:20].reshape(-1, 4, 4).sum(axis=1)
    whole = (matches[:, [0, 1]] + matches[:, [2, 3]] == statistics[:, [0, 1]]).all(axis=1) & (statistics[:, 20] == 1)
    statistics[whole, 20] = 0
    return statistics


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Float[np.ndarray, " texts"]:
    """CIDEr of every text, of pycocoevalcap; words are weighed by the references of all texts together.

    Args:
        candidates, references: tokenized.
    """
    from pycocoevalcap.cider.cider import Cider

    if not candidates:
        return np.zeros(0)
    true = {number: list(texts) for number, texts in enumerate(references)}
    if not any(text.split() for texts in references for text in texts):
        return np.zeros(len(candidates))
    _, scores = Cider().compute_score(true, {number: [text] for number, text in enumerate(candidates)})
    return np.asarray(scores, dtype=float)


def caption_scores(
    systems: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, timeout: float | None = None
) -> list[tuple[Float[np.ndarray, "texts 23"], Float[np.ndarray, " texts"]]]:
    """METEOR's statistics and CIDEr of captions as they were written; both after COCO's tokenizer.

    Args:
        systems: of each system a caption for every image. One start of Java serves them all, since loading METEOR's
            tables takes longer than scoring a thousand captions.
        references: of each image, at least one.
        timeout: seconds for either Java program.

    Raises:
        GroundingError: no Java (`analysis.gcg.java.missing` tells beforehand), or it fails.
    """
    flat = [text for texts in (*systems, *references) for text in texts]
    tokens = iter(java.tokenize(flat, timeout=timeout))
    said, true = ([[next(tokens) for _ in texts] for texts in group] for group in (systems, references))
    sums = meteor_sums([text for texts in said for text in texts], [*true] * len(said), timeout=timeout)
    parts = np.split(sums, len(said)) if said else []
    return [(part, cider_scores(texts, true)) for part, texts in zip(parts, said, strict=True)]


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)
