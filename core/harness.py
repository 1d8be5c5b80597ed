"""A model of this package inside lmms-eval, the field's evaluation harness: `--model attend_and_segment`.

lmms-eval finds it by its entry point and is imported only when it asks for the class, so nothing here needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tqdm import tqdm

from core.errors import GroundingError
from core.lmm import LMM, load_lmm

NAME = "attend_and_segment"
MAX_NEW_TOKENS = 1024  # where a task sets no limit; what lmms-eval's own models of this kind take
DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty")
ELSEWHERE = ("image_aspect_ratio",)  # options that tasks hold for one other code base; our geometry is `geometry`


def manifest() -> Any:
    """What the entry point `lmms_eval.models` hands to lmms-eval: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.AttendAndSegment")


def __getattr__(name: str) -> Any:
    """`AttendAndSegment`, `HarnessModel` as a subclass of lmms-eval's `lmms`, made when it is asked for."""
    if name == "AttendAndSegment":
        return _harness_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _harness_class() -> type:
    from lmms_eval.api.model import lmms

    return type("AttendAndSegment", (HarnessModel, lmms), {"__module__": __name__, "__doc__": HarnessModel.__doc__})


class HarnessModel:
    """Answers lmms-eval's requests with an `LMM`, with or without reading its attention.

    Args:
        pretrained: what `core.load_lmm` takes, or an `LMM` that is loaded already.
        batch_size: questions answered at once, padded on the left.
        maps: capture the attention maps of every answer as `LMM.generate` does. The maps are not kept: the option is
            there to show that the answers stay the same, and to time it.
        geometry: "pad" by default, as everywhere in the paper.
        device, dtype, device_map, quantization, attn_implementation, revision, template: as `core.load_lmm` takes them.
            Under `accelerate launch`, every process takes its own device and its share of the questions.
        max_batch_size: what lmms-eval hands on; not used.

    Raises:
        GroundingError: a model that cannot be loaded, or an option with another value than these.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | LMM = "embedded",
        *,
        batch_size: int | str = 1,
        maps: Any = False,
        geometry: str = "pad",
        device: str | None = None,
        max_batch_size: Any = None,
        **loading: Any,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise GroundingError(f"batch_size is {batch_size!r}; give a whole number of at least 1")
        if not isinstance(maps, bool):
            raise GroundingError(f"maps is {maps!r}; give True or False")
        known = ("dtype", "device_map", "quantization", "attn_implementation", "revision", "template")
        if unknown := sorted(set(loading) - set(known)):
            raise GroundingError(
                f"model_args has no {', '.join(unknown)}; it takes pretrained, batch_size, maps, geometry, device, "
                f"{', '.join(known)}"
            )
        self.batch_size, self.maps, self.answers_with_maps = int(batch_size), maps, 0
        device = self._join_processes() or device or "auto"
        loaded = isinstance(pretrained, LMM)
        self.lmm = pretrained if loaded else load_lmm(pretrained, geometry=geometry, device=device, **loading)
        self._ours = not loaded
        self.device = self.lmm.device

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessModel:
        """From lmms-eval's `key=value,key=value`; what stands there wins over the command line's own options."""
        from lmms_eval.utils import simple_parse_args_string

        further = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**further | simple_parse_args_string(arg_string))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer for each request, in their order.

        Raises:
            GroundingError: a request without exactly one picture, or a generation option that we do not have.
        """
        answers: list[str] = []
        progress = tqdm(total=len(requests), desc="answers", disable=self.rank != 0, mininterval=2)
        for batch in batches(requests, self.batch_size):
            options, stops = generation_of(batch[0].args[1])
            images, prompts = zip(*map(self._question, batch), strict=True)
            texts = self._answer(list(images), list(prompts), options)
            answers += [_before(text, stops) for text in texts]
            progress.update(len(batch))
        progress.close()
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refused: this model is read by what it says."""
        raise GroundingError(
            f"{NAME} answers in words and scores no given continuation, so tasks of output_type loglikelihood or "
            "multiple_choice cannot be run; choose the task's generate_until variant"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Refused: one question is asked about one picture."""
        raise GroundingError(f"{NAME} answers one question about one picture; multi-round tasks cannot be run")

    def clean(self) -> None:
        """Free the model that was loaded here, as lmms-eval asks before judges are started."""
        if self._ours:
            self.lmm = None
        super().clean()

    def _answer(self, images: list[Any], prompts: list[str], options: dict[str, Any]) -> list[str]:
        if not self.maps:
            return self.lmm.answer(images, prompts, **options)
        generations = self.lmm.generate(images, prompts, **options)
        self.answers_with_maps += len(generations)
        return [generation.text for generation in generations]

    def _question(self, request: Any) -> tuple[Any, str]:
        """The one picture and the text of a request."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if len(visuals) != 1:
            raise GroundingError(
                f"question {doc_id} of task {task} comes with {len(visuals)} pictures; {NAME} answers questions about "
                "exactly one (of ScienceQA the task is scienceqa_img)"
            )
        if self.lmm.family.placeholder in context:
            raise GroundingError(
                f"question {doc_id} of task {task} holds the image token {self.lmm.family.placeholder!r}; {NAME} puts "
                "the picture where the model's own template has it, so the task must not"
            )
        return visuals[0], context

    def _join_processes(self) -> str | None:
        """This process's place among those of `accelerate launch`, and its device; None where it is alone."""
        import os

        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return None
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        return str(self.accelerator.device)


def generation_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as options of `LMM.generate`, and the texts before which an answer ends.

    Greedy unless the task samples: a temperature of 0 means greedy, one above 0 sampling, as in lmms-eval.

    Raises:
        GroundingError: an option that would be lost.
    """
    options = {name: value for name, value in given.items() if name not in ("until", *ELSEWHERE)}
    if unknown := sorted(set(options) - set(DECODING)):
        raise GroundingError(f"the task's generation_kwargs have {', '.join(unknown)}; known: {', '.join(DECODING)}")
    options = {"max_new_tokens": MAX_NEW_TOKENS} | {name: value for name, value in options.items() if value is not None}
    options["do_sample"] = bool(options.get("do_sample", options.get("temperature", 0) > 0))
    if not options["do_sample"]:
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
    until = given.get("until") or []
    return options, [until] if isinstance(until, str) else list(until)


def batches(requests: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Neighbours with the same generation options, at most `size` at once."""
    for _, group in itertools.groupby(requests, key=lambda request: repr(sorted(request.args[1].items()))):
        yield from (list(batch) for batch in _chunks(group, size))


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _before(text: str, stops: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
