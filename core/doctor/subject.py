"""The model under examination: its pictures and prompts, the evidence that several lines share, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from core.batch import Batch, encode, extend
from core.capture import model_lock
from core.decoding import stop_ids
from core.doctor.eager import Reference, eager_generation, switched
from core.doctor.tolerances import Tolerance, row_error, tolerance
from core.errors import GroundingError
from core.generation import Generation
from core.images import load_image
from core.lmm import LMM
from core.prompts import render_prompt

PROMPTS = ("What is there?", "Describe the image in detail, and say where each thing is.")  # of two lengths
NEW_TOKENS = 6
SENSITIVE = 3.0


class MissingEvidence(GroundingError):
    """What a line rests on could not be made; the line that needed it first says why."""


class Subject:
    """A model that is asked a little, and its answers, each computed once.

    Args:
        lmm: the model.
        image: the picture of the conversations; anything `load_image` opens.
    """

    def __init__(self, lmm: LMM, image: Any = "embedded"):
        self.lmm, self.family, self.model = lmm, lmm.family, lmm.model
        picture = load_image(image)
        width, height = picture.size
        self.pictures = (picture, picture.crop((0, 0, max(1, width * 2 // 3), max(1, height * 2 // 5))))
        self.texts = tuple(self._rendered(prompt) for prompt in PROMPTS)
        self.probes: list[Any] = []
        self._kept: dict[str, Any] = {}

    def _rendered(self, prompt: str) -> str:
        """The prompt as the model's template writes it; where there is none, the picture and the words."""
        try:
            return render_prompt(prompt, self.family, template=self.lmm.template)
        except GroundingError:
            return f"{self.family.image_block.format(placeholder=self.family.placeholder)}\n{prompt}\n"

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The evidence of that name, made when it is first asked for.

        Raises:
            MissingEvidence: it could not be made the first time.
        """
        if name not in self._kept:
            try:
                self._kept[name] = (make(), None)
            except (
                Exception
            ) as error:  # whatever an adapter or a model throws is a finding, told by the line that asked
                self._kept[name] = (None, error)
                raise
        found, error = self._kept[name]
        if error is not None:
            raise MissingEvidence(f"needs {name}, which could not be had (see above)")
        return found

    # ---- what the model is shown

    @property
    def batch(self) -> Batch:
        """The first picture with the first prompt, as the model gets it."""
        return self.once(
            "the processed prompt", lambda: encode(self.family, [self.pictures[0]], [self.texts[0]], many=False)
        )

    def language_inputs(self, batch: Batch) -> Tensor:
        """float32 [S, d] on the CPU: what enters the first decoder layer; the decoder itself is not run."""
        return entering(self.lmm, batch)

    def features(self, image: Image.Image) -> tuple[Tensor, Batch]:
        """float32 [k, d]: what stands at the visual positions of a picture, and its batch."""
        batch = encode(self.family, [image], [self.texts[0]], many=False)
        return self.language_inputs(batch)[batch.columns[0]], batch

    # ---- what it says

    @property
    def options(self) -> dict[str, Any]:
        """Greedy decoding of a few ordinary tokens, undisturbed by what a checkpoint's generation settings add."""
        return {"max_new_tokens": NEW_TOKENS, "suppress_tokens": self.silenced, "repetition_penalty": 1.0}

    @property
    def silenced(self) -> list[int]:
        """Tokens that stand for no word: images, ends, markers."""
        tokenizer = self.family.processor.tokenizer
        special = {id for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
        special |= {*tokenizer.all_special_ids, *stop_ids(self.family), self.family.image_token_id}
        return sorted(special)

    @property
    def said(self) -> Generation:
        """A few tokens on the first picture, with every head's rows."""
        return self.once("an answer of the model", lambda: self.generate(self.pictures[0], self.texts[0]))

    def generate(self, image: Any, text: Any) -> Any:
        """A few tokens, captured as always."""
        return self.lmm.generate(image, text, per_head=True, **self.options)

    def replay(self, answer: Any, *, row: str = "predicting") -> Generation:
        """A given answer on the first picture."""
        return self.lmm.replay(self.pictures[0], self.texts[0], answer, per_head=True, row=row)

    @property
    def reference(self) -> Reference:
        """The same answer by transformers alone: eager attention, weights read off its own modules."""
        return self.once(
            "transformers' eager answer", lambda: eager_generation(self.lmm, self.batch, NEW_TOKENS, self.options)
        )

    @property
    def said_eagerly(self) -> Generation:
        """The same answer, captured while the model runs eager attention."""

        def ask() -> Generation:
            with switched(self.lmm, "eager"):
                return self.generate(self.pictures[0], self.texts[0])

        return self.once("an answer captured over eager attention", ask)

    @property
    def replayed(self) -> Generation:
        """The answer, teacher-forced."""
        return self.once("the replayed answer", lambda: self.replay(self.said.token_ids))

    @property
    def limits(self) -> Tolerance:
        """How far apart two ways of computing the same may lie in this model: by its dtype, and wider where it is more
        sensitive, up to `SENSITIVE` times what one more rounding of the decoder's inputs changes.
        """
        return self.once("the model's sensitivity to rounding", self._limits)

    def _limits(self) -> Tolerance:
        usual, ids = tolerance(self.model.dtype), self.said.token_ids
        with rounded_once_more(self.lmm):
            scores = self.scores(self.pictures[0], self.texts[0], ids)
            rows = self.replay(ids).attention
        plain = self.logits()
        apart = float((scores - plain).abs().max() / plain.std().clamp(min=1e-12))
        return replace(
            usual,
            other=max(usual.other, SENSITIVE * row_error(rows, self.replayed.attention)),
            logits=max(usual.logits, SENSITIVE * apart),
        )

    def logits(self, *, implementation: str | None = None) -> Tensor:
        """float32 [t, V]: scores of the tokens of `said`, from one forward of prompt and answer.

        Args:
            implementation: of the decoder's attention; None for the one that the model was loaded with.
        """
        return self.once(f"logits ({implementation or 'as loaded'})", lambda: self._logits(implementation))

    def _logits(self, implementation: str | None) -> Tensor:
        with switched(self.lmm, implementation):
            return self.scores(self.pictures[0], self.texts[0], self.said.token_ids)

    def scores(self, picture: Image.Image, text: str, ids: Tensor) -> Tensor:
        """float32 [t, V]: the model's scores at the places of an answer's tokens, teacher-forced."""
        batch = encode(self.family, [picture], [text], many=False)
        inputs, _ = extend(batch, [ids], self.family)
        with model_lock(self.model), torch.no_grad():
            scores = self.model(**inputs, use_cache=False, logits_to_keep=len(ids) + 1).logits
        return scores[0, :-1].float().cpu()


@contextmanager
def rounded_once_more(lmm: LMM) -> Iterator[None]:
    """Inside the context the embeddings that enter the decoder differ by about one rounding in the model's dtype."""

    def jitter(_: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeddings = options["inputs_embeds"]
        noise = torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        factor = 1 + noise * torch.finfo(embeddings.dtype).eps
        return arguments, options | {"inputs_embeds": (embeddings * factor.to(embeddings.device)).to(embeddings.dtype)}

    handle = lmm.family.text_model.register_forward_pre_hook(jitter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Entered(Exception):
    """Carries what entered the decoder out of the model."""

    def __init__(self, embeddings: Tensor):
        super().__init__()
        self.embeddings = embeddings


def entering(lmm: LMM, batch: Batch) -> Tensor:
    """float32 [S, d] on the CPU: the embeddings that a model hands to its decoder for one prompt.

    The pass ends there, so that it costs the visual tower and the projector only. Random numbers that a tower draws are
    the same in every call.

    Raises:
        GroundingError: the model does not hand embeddings to its decoder.
    """

    def stop(_: Any, arguments: tuple, options: dict[str, Any]) -> None:
        embeddings = options.get("inputs_embeds")
        if embeddings is None:
            raise GroundingError(f"{type(lmm.model).__name__} does not call its decoder with inputs_embeds")
        raise _Entered(embeddings)

    handle = lmm.family.text_model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with model_lock(lmm.model), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            lmm.model(**batch.inputs, use_cache=False, logits_to_keep=1)
    except _Entered as entered:
        return entered.embeddings[0].detach().float().cpu()
    finally:
        handle.remove()
    raise GroundingError(f"{type(lmm.model).__name__} never called {type(lmm.family.text_model).__name__}")
