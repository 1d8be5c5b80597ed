"""An answer's noun phrases and the output tokens that spell their central nouns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from core.errors import GroundingError
from core.weights import weights_path

if TYPE_CHECKING:
    from spacy.language import Language


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of an answer.

    Attributes:
        text: the phrase as it stands in the answer.
        span: its (start, end) characters in the answer.
        root: its central noun.
        root_span: (start, end) characters of the central noun.
        tokens: indices of the output tokens that overlap the central noun, ascending; never empty.

    >>> import torch
    >>> from core.phrases import phrase_at
    >>> phrase_at("A cat sat.", torch.tensor([[0, 1], [1, 5], [5, 9], [9, 10]]), (0, 5), (2, 5)).tokens
    (1,)
    """

    text: str
    span: tuple[int, int]
    root: str
    root_span: tuple[int, int]
    tokens: tuple[int, ...]


def load_nlp(name: str = "embedded") -> Language:
    """Load a spaCy pipeline: the embedded one, an installed package (`en_core_web_lg`) or a directory.

    Raises:
        GroundingError: the pipeline is not there (with the command that installs it) or cannot be read. Nothing else
            is ever loaded in its place, since scores would change.

    >>> from core import load_nlp
    >>> [chunk.root.text for chunk in load_nlp("embedded")("There is a red star next to the blue rook.").noun_chunks]
    ['star', 'rook']
    """
    import spacy

    if name in ("embedded", "embedded/en"):
        return spacy.load(weights_path("en"))
    if Path(name).is_dir():
        try:
            return spacy.load(Path(name))
        except (OSError, ValueError) as error:
            raise GroundingError(f"no spaCy pipeline could be read from the directory {name}: {error}") from error
    if not spacy.util.is_package(name):
        raise GroundingError(
            f"the spaCy pipeline {name!r} is neither installed nor a directory; install it with "
            f"`python -m spacy download {name}` (with conda: `conda install -c conda-forge "
            f"spacy-model-{name}`), or ask for 'embedded'"
        )
    return spacy.load(name)


def find_phrases(
    text: str,
    token_spans: Int[Tensor, "t 2"],
    nlp: Language,
    *,
    pronouns: bool = False,
) -> tuple[Phrase, ...]:
    """The noun chunks of an answer, in order, with the tokens of their roots.

    Args:
        text: the answer.
        token_spans: character span of each output token in `text`; an empty span marks a token that does not show in
            the text (special tokens, end of sequence, the inner bytes of a character) and never belongs to a phrase.
        nlp: a spaCy pipeline with a parser.
        pronouns: keep chunks whose root is a pronoun ("it", "they"). Off by default, unlike the released code: a
            pronoun names no object.

    Returns:
        Phrases; an empty tuple for an answer without nouns.

    Raises:
        GroundingError: the pipeline has no parser.

    Source: section 3.1: the tokens that overlap the phrase's central noun, by character span.
    """
    if not text.strip():
        return ()
    doc = nlp(text)
    if not doc.has_annotation("DEP"):
        raise GroundingError(
            f"noun phrases need a spaCy pipeline with a dependency parser; {_name(nlp)} has only "
            f"{nlp.pipe_names or 'a tokenizer'}. Use 'embedded' or en_core_web_lg"
        )
    found = []
    for chunk in doc.noun_chunks:
        root = chunk.root
        if root.pos_ == "PRON" and not pronouns:
            continue
        phrase = phrase_at(text, token_spans, (chunk.start_char, chunk.end_char), (root.idx, root.idx + len(root.text)))
        if phrase is not None:
            found.append(phrase)
    return tuple(found)


def phrase_at(
    text: str,
    token_spans: Int[Tensor, "t 2"],
    span: tuple[int, int],
    root_span: tuple[int, int] | None = None,
) -> Phrase | None:
    """A phrase by its characters: grounds any words, not only nouns ("next to"). None where no token shows them.

    Args:
        span: (start, end) characters of the phrase.
        root_span: (start, end) characters of the words whose tokens count; None means the whole phrase.

    Raises:
        GroundingError: a span is empty or outside the text.
    """
    root_span = span if root_span is None else root_span
    for start, end in (span, root_span):
        if not 0 <= start < end <= len(text):
            raise GroundingError(
                f"characters {start}..{end} are not a part of the answer, which has {len(text)} characters"
            )
    start, end = root_span
    tokens = tuple(
        i for i, (first, last) in enumerate(token_spans.tolist()) if first < last and first < end and last > start
    )
    if not tokens:
        return None
    return Phrase(text[slice(*span)], span, text[slice(*root_span)], root_span, tokens)


def first_tokens(text: str, length: int, number: int) -> tuple[Phrase, ...]:
    """An answer's first `number` of `length` tokens as one phrase, whatever they spell; nothing of an empty answer.

    Source: the released code's referring segmentation, which knows the object from the question.
    """
    whole = (0, len(text))
    tokens = tuple(range(min(number, length)))
    return (Phrase(text, whole, text, whole, tokens),) if tokens else ()


def similarity(nlp: Language, a: str, b: str) -> float:
    """Cosine similarity of two texts' mean word vectors, in -1..1; 0 where one of them has no vector.

    Raises:
        GroundingError: the pipeline has no word vectors.
    """
    if nlp.vocab.vectors_length == 0:
        raise GroundingError(
            f"similarity needs a spaCy pipeline with word vectors; {_name(nlp)} has none. "
            "Use 'embedded' or en_core_web_lg"
        )
    first, second = nlp.make_doc(a), nlp.make_doc(b)
    if not first.vector_norm or not second.vector_norm:
        return 0.0
    return float(first.similarity(second))


def pipeline_name(nlp: Language) -> str:
    """Language, name and version of a pipeline, as `en_core_web_lg 3.8.0`."""
    meta = nlp.meta
    return f"{meta['lang']}_{meta['name']} {meta['version']}"


def _name(nlp: Language) -> str:
    return repr(pipeline_name(nlp))
