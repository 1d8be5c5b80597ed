"""Short texts as vectors, by a named encoder: what says whether two phrases mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import GroundingError
from core.phrases import pipeline_name

if TYPE_CHECKING:
    from spacy.language import Language

POOLINGS = ("mean", "first")
LONGEST = 512  # tokens of a text that are read


@runtime_checkable
class TextEncoder(Protocol):
    """Anything with a name for tables and a vector for each text."""

    name: str

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """One vector for each text; zeros where a text has none."""


class WordVectors:
    """The mean of a text's spaCy word vectors.

    Raises:
        GroundingError: the pipeline has no word vectors.
    """

    def __init__(self, nlp: Language) -> None:
        if nlp.vocab.vectors_length == 0:
            raise GroundingError(
                f"{pipeline_name(nlp)} has no word vectors to compare phrases by; use 'embedded' or en_core_web_lg"
            )
        self._nlp = nlp
        self.name = f"word vectors of {pipeline_name(nlp)}"

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """Float32; lower-cased, since vectors are of lower-cased words; zeros where no word has a vector."""
        vectors = [np.asarray(self._nlp.make_doc(text.lower()).vector, np.float32) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, self._nlp.vocab.vectors_length), np.float32)


class HiddenStates:
    """The last hidden states of a transformers encoder, pooled over a text's tokens (special ones included).

    Args:
        model, tokenizer: of transformers.
        name: for tables.
        pooling: "mean" of all tokens, or the "first" one, as some sentence encoders have it.
        batch_size: texts of one forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, pooling: str = "mean", batch_size: int = 64) -> None:
        if pooling not in POOLINGS:
            raise GroundingError(f"pooling {pooling!r} is not known; choose one of {', '.join(POOLINGS)}")
        self._model, self._tokenizer, self._pooling, self._batch = model.eval(), tokenizer, pooling, batch_size
        self.name = f"{name}, {'mean' if pooling == 'mean' else 'first token'} of the last hidden states"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """Float32; texts of like length share a forward pass, and padding counts for nothing."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), self._batch):
            part = order[start : start + self._batch]
            found |= dict(zip(part, self._pooled([texts[i] for i in part]), strict=True))
        width = self._model.config.hidden_size
        return torch.stack([found[i] for i in range(len(texts))]).numpy() if texts else np.zeros((0, width), np.float32)

    def _pooled(self, texts: list[str]) -> Tensor:
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST)
        inputs = inputs.to(self._model.device)
        states = self._model(**inputs).last_hidden_state.float()
        if self._pooling == "first":
            return states[:, 0].cpu()
        kept = inputs["attention_mask"][..., None].float()
        return ((states * kept).sum(1) / kept.sum(1).clamp(min=1)).cpu()


def load_text_encoder(
    name: str = "spacy", *, nlp: Language | None = None, pooling: str = "mean", device: str = "auto"
) -> TextEncoder:
    """The encoder of this name.

    Args:
        name: "spacy" for the word vectors of `nlp`; else a hub id or directory of a transformers encoder, such as
            `bert-base-uncased` (the protocol of grounded conversation generation) or
            `sentence-transformers/all-MiniLM-L6-v2`.
        nlp: a spaCy pipeline with vectors; used by "spacy" alone.
        pooling: as in `HiddenStates`.
        device: "auto" takes a GPU if there is one.

    Raises:
        GroundingError: no such encoder, one that is not an encoder of text, or "spacy" without `nlp`.

    Source: section 4.2; bert-base-uncased and the mean from the public evaluator of GLaMM.
    """
    if name == "spacy":
        if nlp is None:
            raise GroundingError("the text encoder 'spacy' takes the vectors of a pipeline: give nlp=load_nlp(...)")
        return WordVectors(nlp)
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise GroundingError(
            f"no text encoder could be loaded from {name!r} ({str(error).splitlines()[0]}); give a hub id or a "
            "directory of a transformers encoder such as bert-base-uncased, or 'spacy' for word vectors"
        ) from error
    if not hasattr(model.config, "hidden_size") or tokenizer.pad_token is None:
        raise GroundingError(f"{name!r} is a {type(model).__name__}, not an encoder of text such as bert-base-uncased")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return HiddenStates(
        model.to(where), tokenizer, name=Path(name).name if Path(name).is_dir() else name, pooling=pooling
    )
