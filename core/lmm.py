"""A large multimodal model that tells where it looked: load it, let it answer, or replay any answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.batch import Batch, encode, extend, pair
from core.capture import RowRecorder, model_lock, recording
from core.checkpoints import load_checkpoint
from core.decoding import (
    ClosestChoice,
    answer_ids,
    cut_answers,
    describe,
    generation_options,
    refuse_image_token,
    runs_stepwise,
)
from core.errors import GroundingError
from core.families import family_class
from core.generation import ROWS, Generation
from core.prompts import render_prompt
from core.spans import decode_with_spans


class LMM:
    """A model, its processor and the adapter of its family.

    Args:
        model: a transformers image-text-to-text model.
        processor: its processor.
        geometry: "processor", or "pad" to lose nothing of an image that the processor would crop; "pan-and-scan" for
            Gemma 3, which then sees the strips of long images, too.
        template: prompt template for all calls, see `core.prompts.render_prompt`; None for the chat template.
        name: what to write into the provenance; by default the path or hub id that the model came from.

    Raises:
        GroundingError: no adapter for the model's family, or an unknown geometry.

    >>> from core import load_lmm
    >>> lmm = load_lmm("embedded", geometry="pad", device="cpu")
    >>> answer = lmm.generate("embedded", "Describe the image in detail.", max_new_tokens=80)
    >>> answer.text[:43]
    'The image features a blue moon and a yellow'
    >>> lmm.replay("embedded", "What is there?", "A blue moon.").attention.shape
    torch.Size([6, 100])
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        geometry: str = "processor",
        template: str | None = None,
        name: str | None = None,
    ):
        vision = getattr(model.config, "vision_config", None)
        family = family_class(model.config.model_type, getattr(vision, "model_type", None))
        if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
            raise GroundingError(
                f"{type(processor).__name__} is not a multimodal processor; give one with a tokenizer and an image "
                "processor (AutoProcessor.from_pretrained of the model's directory)"
            )
        self.model, self.processor = model.eval(), processor
        self.family = family(model, processor, geometry=geometry)
        self.template = template
        self.name = name or model.config.name_or_path or type(model).__name__
        tokenizer = processor.tokenizer
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.model.device

    def generate(
        self,
        image: Any,
        prompt: str | list | tuple,
        *,
        max_new_tokens: int = 512,
        per_head: bool = False,
        row: str = "predicting",
        system: str | None = None,
        template: str | None = None,
        **extra: Any,
    ) -> Generation | list[Any]:
        """Let the model answer, greedily unless told otherwise, and keep where each token looked.

        Args:
            image: anything `core.images.load_image` reads, or a list of them (a batch, padded on the left). An item of
                the list that is a list itself holds several images of one prompt, in order (frames of a video, say).
            prompt: one prompt for all images, or one for each.
            max_new_tokens: longest answer in tokens.
            per_head: keep float32 [t, l, n, k], too.
            row: "predicting" takes the row of the position that predicts a token (the paper's definition); "self"
                the row whose query is the token.
            system: system prompt in place of the template's own.
            template: as in the constructor, for this call.
            extra: passed to `model.generate`. Beams, several sequences, assistants and other caches than
                the default are generated plainly and then replayed.

        Returns:
            A `Generation`; for a list of images or prompts a list of them; with num_return_sequences > 1 a list of
            that many in place of each.

        Raises:
            GroundingError: an unreadable image, a prompt that cannot be rendered, or an option that is not ours to
                give.

        Source: paper section 3.1. The reference runs eager attention with `output_attentions=True` on one image.
        """
        _check_row(row)
        options = generation_options(self.family, max_new_tokens, extra)
        batch = self._encode(image, prompt, system=system, template=template)
        provenance = {"method": "generate", "row": row, "system": system, "generation": describe(options)}
        provenance["template"] = self.template if template is None else template
        stepwise = runs_stepwise(self.model, options)
        choices = ClosestChoice() if stepwise and len(batch.sizes) > 1 and not options["do_sample"] else None
        options = options if choices is None else choices.added_to(options)
        with model_lock(self.model), torch.no_grad():
            if row == "predicting" and stepwise:
                results = self._generate_recorded(batch, options, per_head, provenance)
            else:
                results = self._generate_replayed(batch, options, per_head, row, provenance)
        results = results if choices is None else choices.noted_in(results)
        return results if batch.many else results[0]

    def prompt_length(self, image: Any, prompt: str, *, system: str | None = None, template: str | None = None) -> int:
        """Tokens of a prompt as the model sees it, those of the image among them; arguments as for `generate`.

        Raises:
            GroundingError: as for `generate`.
        """
        return self._encode(image, prompt, system=system, template=template).length

    def answer(
        self,
        image: Any,
        prompt: str | list | tuple,
        *,
        max_new_tokens: int = 512,
        system: str | None = None,
        template: str | None = None,
        **extra: Any,
    ) -> str | list[Any]:
        """The text that `generate` answers with, written by the model's own `generate` alone: no map is read.

        Args:
            image, prompt, max_new_tokens, system, template, extra: as for `generate`.

        Returns:
            The answer without special tokens; for a list of images or prompts a list of them; with
            num_return_sequences > 1 a list of that many in place of each.

        Raises:
            GroundingError: as for `generate`.

        >>> from core import load_lmm
        >>> load_lmm("embedded", device="cpu").answer("embedded", "How many objects are there?")
        'In total, there are two objects in the image.'
        """
        options = generation_options(self.family, max_new_tokens, extra)
        batch = self._encode(image, prompt, system=system, template=template)
        with model_lock(self.model), torch.no_grad():
            sequences = self.model.generate(**batch.inputs, **options)
        answers = cut_answers(sequences[:, batch.length :], self.model, options)
        texts = [decode_with_spans(self.processor.tokenizer, ids.tolist())[0] for ids in answers]
        copies = len(texts) // len(batch.sizes)
        if copies > 1:
            texts = [texts[start : start + copies] for start in range(0, len(texts), copies)]
        return texts if batch.many else texts[0]

    def _generate_recorded(
        self, batch: Batch, options: dict[str, Any], per_head: bool, provenance: dict[str, Any]
    ) -> list[Generation]:
        behind = _behind_image(batch.columns)
        first = min(batch.length - 1, *behind)
        ends = [batch.length] * len(behind)
        recorder = self._recorder(batch, batch.columns, batch.mask, ends=ends, first=first, per_head=per_head)
        with recording(self.model, self.family.text_model, recorder):
            sequences = self.model.generate(**batch.inputs, **options)
        answers = cut_answers(sequences[:, batch.length :], self.model, options)
        rows = [
            _Rows.cut(recorded, range(start - first, batch.length - 1 - first), batch.length - 1 - first, len(ids))
            for recorded, start, ids in zip(recorder.finish(), behind, answers, strict=True)
        ]
        return self._results(batch, answers, rows, provenance)

    def _generate_replayed(
        self, batch: Batch, options: dict[str, Any], per_head: bool, row: str, provenance: dict[str, Any]
    ) -> list[Any]:
        """Plain generation, then one teacher-forced pass of the batch per returned sequence."""
        sequences = self.model.generate(**batch.inputs, **options)
        copies = len(sequences) // len(batch.sizes)
        answers = cut_answers(sequences[:, batch.length :], self.model, options)
        turns = [
            self._replay(batch, answers[turn::copies], per_head=per_head, row=row, provenance=provenance)
            for turn in range(copies)
        ]
        return [list(group) for group in zip(*turns, strict=True)] if copies > 1 else turns[0]

    def replay(
        self,
        image: Any,
        prompt: str | list | tuple,
        answer: Any,
        *,
        per_head: bool = False,
        row: str = "predicting",
        system: str | None = None,
        template: str | None = None,
        end_of_sequence: bool = True,
    ) -> Generation | list[Any]:
        """Ground any given answer: one teacher-forced forward of prompt and answer.

        Args:
            image, prompt, per_head, row, system, template: as for `generate`.
            answer: a text, tokenised alone without special tokens, or int64 ids [t], taken as they are; for a batch a
                list of them. Without any id the `Generation` has t = 0.
            end_of_sequence: close a text with the token that ends the model's own answers, so that equation 3 takes
                its mean over the same tokens as after `generate`. False for the text of an answer that
                `max_new_tokens` cut, which has none.

        Returns:
            A `Generation`, or a list of them for a batch.

        Raises:
            GroundingError: as for `generate`; or the answer holds the image token; or ids outside the vocabulary.
        """
        _check_row(row)
        batch = self._encode(image, prompt, system=system, template=template)
        given = [answer] if not batch.many else answer
        if not isinstance(given, list | tuple) or len(given) != len(batch.sizes):
            raise GroundingError(f"give one answer for each of the {len(batch.sizes)} images, as a list")
        answers = [answer_ids(one, self.family, end_of_sequence=end_of_sequence) for one in given]
        provenance = {"method": "replay", "row": row, "system": system, "end_of_sequence": end_of_sequence}
        provenance["template"] = self.template if template is None else template
        with model_lock(self.model), torch.no_grad():
            results = self._replay(batch, answers, per_head=per_head, row=row, provenance=provenance)
        return results if batch.many else results[0]

    def _encode(self, image: Any, prompt: Any, *, system: str | None, template: str | None) -> Batch:
        images, prompts, many = pair(image, prompt)
        if not images:
            raise GroundingError("no images were given")
        template = self.template if template is None else template
        texts = [
            render_prompt(text, self.family, template=template, system=system, images=len(group))
            for text, group in zip(prompts, images, strict=True)
        ]
        return encode(self.family, images, texts, many=many)

    def _recorder(
        self, batch: Batch, columns: tuple[Tensor, ...], mask: Tensor, *, ends: list[int], **options: Any
    ) -> RowRecorder:
        """`ends`: position behind each prompt."""
        layers = self.model.config.get_text_config().num_hidden_layers
        both_ways = [self.family.attends_both_ways(ids) for ids in batch.prompt_ids]
        pairs = zip(ends, batch.prompt_ids, both_ways, strict=True)
        prefix = torch.tensor([end - len(ids) + length for end, ids, length in pairs]) if any(both_ways) else None
        return RowRecorder(columns=columns, mask=mask, layers=layers, prefix=prefix, **options)

    def _replay(
        self, batch: Batch, answers: list[Tensor], *, per_head: bool, row: str, provenance: dict[str, Any]
    ) -> list[Generation]:
        longest = max(len(ids) for ids in answers)
        if longest == 0:
            return self._results(batch, answers, self._no_rows(batch, per_head), provenance)
        refuse_image_token(answers, self.family)
        inputs, columns = extend(batch, answers, self.family)
        predicting, behind = row == "predicting", _behind_image(columns)
        total = inputs["input_ids"].shape[1]
        first = min(total - longest - predicting, *behind)
        mask = inputs["attention_mask"].bool()
        ends, last = [total - len(ids) for ids in answers], total - 1 - predicting
        recorder = self._recorder(batch, columns, mask, ends=ends, first=first, last=last, per_head=per_head)
        with recording(self.model, self.family.text_model, recorder):
            self.model(**inputs, use_cache=False, logits_to_keep=1)
        rows = []
        for recorded, start, ids in zip(recorder.finish(), behind, answers, strict=True):
            asked, said = range(start - first, total - len(ids) - 1 - first), total - len(ids) - predicting - first
            rows.append(_Rows.cut(recorded, asked, said, len(ids)))
        return self._results(batch, answers, rows, provenance)

    def _no_rows(self, batch: Batch, per_head: bool) -> list[_Rows]:
        """The rows of answers without a token."""
        text_config = self.model.config.get_text_config()
        shape = (0, text_config.num_hidden_layers, text_config.num_attention_heads)
        empty = [torch.zeros(*shape, len(columns)) for columns in batch.columns]
        return [_Rows(each.sum(dim=(1, 2)), each if per_head else None, None) for each in empty]

    def _results(
        self, batch: Batch, answers: list[Tensor], rows: list[_Rows], provenance: dict[str, Any]
    ) -> list[Generation]:
        results = []
        for i, ids in enumerate(answers):
            text, spans = decode_with_spans(self.processor.tokenizer, ids.tolist())
            results.append(
                Generation(
                    text=text,
                    token_ids=ids,
                    prompt_ids=batch.prompt_ids[i],
                    attention=rows[i].mean,
                    attention_per_head=rows[i].heads,
                    prompt_attention=rows[i].prompt,
                    views=batch.views[i],
                    token_spans=spans,
                    image_size=batch.sizes[i][0],
                    image_sizes=batch.sizes[i] if len(batch.sizes[i]) > 1 else (),
                    model=self._provenance() | provenance,
                )
            )
        return results

    def _provenance(self) -> dict[str, Any]:
        return {
            "name_or_path": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "family": self.model.config.model_type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "attention": self.family.text_model.config._attn_implementation,
            "geometry": self.family.geometry,
        }


def load_lmm(
    name_or_path: str | Path = "embedded",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    geometry: str = "processor",
    template: str | None = None,
    revision: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | Mapping[str, Any] | None = None,
) -> LMM:
    """Load a hub id, a `save_pretrained` directory, or the embedded model.

    Args:
        name_or_path: "embedded" (also "embedded/llava"), a directory, or a hub id such as "llava-hf/llava-1.5-7b-hf".
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "auto" is float32 on the CPU and the checkpoint's own elsewhere.
        geometry: "processor" leaves the image to the processor; "pad" pads where it would crop.
        template: prompt template, see `core.prompts.render_prompt`; None for the checkpoint's chat template.
        revision: branch, tag or commit on the hub.
        device_map: spreads the model over devices ("auto", or a map of module names), in the place of `device`.
        attn_implementation: attention kernels as transformers names them ("sdpa", "flash_attention_2", "eager").
        quantization: "4bit" or "8bit" (needs bitsandbytes), or the fields of another quantisation of transformers.

    Raises:
        GroundingError: nothing loadable there, or a family without an adapter or without a spatial grid.

    >>> from core import load_lmm
    >>> load_lmm("embedded/difflmm", device="cpu", dtype="float32").model.config.vision_config.model_type
    'diffusion_vision'
    """
    model, processor = load_checkpoint(
        name_or_path,
        device=device,
        dtype=dtype,
        revision=revision,
        device_map=device_map,
        attn_implementation=attn_implementation,
        quantization=quantization,
    )
    return LMM(model, processor, geometry=geometry, template=template, name=str(name_or_path))


@dataclass(frozen=True, eq=False)
class _Rows:
    """What was recorded of one sample: of its answer the mean [t, k] and every head's [t, l, n, k], of its prompt's
    words behind the image their mean [k].
    """

    mean: Tensor
    heads: Tensor | None
    prompt: Tensor | None

    @classmethod
    def cut(cls, recorded: tuple[Tensor, Tensor | None], asked: range, said: int, length: int) -> _Rows:
        """From all recorded rows those of the prompt, `asked`, and `length` of the answer from `said` on."""
        mean, heads = recorded
        answer = slice(said, said + length)
        prompt = mean[asked.start : asked.stop].mean(dim=0) if len(asked) and length else None
        return cls(_own(mean[answer]), None if heads is None else _own(heads[answer]), prompt)


def _behind_image(columns: tuple[Tensor, ...]) -> list[int]:
    """Position after the last visual token of each sample."""
    return [int(each.max()) + 1 for each in columns]


def _check_row(row: str) -> None:
    if row not in ROWS:
        raise GroundingError(f"unknown row {row!r}; use one of {', '.join(ROWS)}")


def _own(rows: Tensor) -> Tensor:
    """Rows that do not keep a larger tensor alive."""
    return rows if rows.untyped_storage().nbytes() == rows.numel() * rows.element_size() else rows.clone()
