"""Ground many images, resumably."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.attention import select_heads
from core.decoding import is_near_tie
from core.errors import GroundingError
from core.generation import Generation
from core.images import load_image
from core.options import GroundOptions
from core.pipeline import Grounding, ground, refuse_without_effect
from core.planning import AUTO, FixedPlan, LengthPlan, out_of_memory, release_memory
from core.progress import progress_bar
from core.records import RunStore

if TYPE_CHECKING:
    from PIL import Image
    from spacy.language import Language
    from torch import Tensor

    from core.lmm import LMM
    from core.masks import Segmenter


@dataclass(frozen=True)
class RunSummary:
    """What one call of `ground_dataset` did, each in the order of the items.

    Attributes:
        grounded, failed: ids that got a record now, and that failed now.
        skipped: ids that had a record already.
        near_ties: of those grounded, answers written in a batch where two tokens were as good as equal somewhere
            (`core.decoding.is_near_tie`). All others are the answers that the model gives to each image alone.
    """

    grounded: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    near_ties: tuple[str, ...] = ()


def ground_dataset(
    items: Iterable[tuple[str, Any]],
    prompt: str | Mapping[str, str],
    *,
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Language,
    store: RunStore,
    answers: Mapping[str, Any] | None = None,
    batch_size: int | str = 1,
    progress: bool = True,
    retry_errors: bool = False,
    measure: Callable[[Grounding], Mapping[str, Tensor]] | None = None,
    max_new_tokens: int = 512,
    generation_options: dict[str, Any] | None = None,
    options: GroundOptions | str = "paper",
    **changes: Any,
) -> RunSummary:
    """Ground every image that has no record yet.

    Interrupt or kill it at any moment and call it again: what is finished is kept and not repeated. An image that
    cannot be read or grounded becomes an error record and the run goes on; anything else (out of memory, a bug) stops
    it.

    Args:
        items: (id, image) pairs, each id once; images in any form `load_image` opens, opened only when their turn
            comes.
        prompt: one prompt for all images, or one per id.
        store: where records go.
        answers: ground these, by id, instead of generating: texts, or ids as `LMM.replay` takes them.
        batch_size: images per forward pass. "auto" looks some images ahead and puts those of about the same length
            together, as many as fit into memory; where they do not, it goes on with half as many (`core.planning`).
        progress: show a progress bar.
        retry_errors: try the ids with an error record again.
        measure: tensors to keep with a record, by name, computed from each grounding while its per-head maps are at
            hand; they come back as `grounding.measured`. Name them in the store's configuration.
        max_new_tokens, generation_options, options, **changes: as in `attend_and_segment`.

    Raises:
        GroundingError: an id appears twice, or has no prompt or answer; options that no image could use.

    >>> import tempfile
    >>> from core import RunStore, ground_dataset, load_lmm, load_nlp
    >>> parts = {"lmm": load_lmm("embedded", device="cpu"), "segmenter": None, "nlp": load_nlp("embedded")}
    >>> store = RunStore(tempfile.mkdtemp(), {"what": "an example"})
    >>> run = {"store": store, "max_new_tokens": 20, "progress": False, **parts}
    >>> ground_dataset([("scene", "embedded"), ("gone", "gone.png")], "What is there?", **run)
    RunSummary(grounded=('scene',), failed=('gone',), skipped=(), near_ties=())
    >>> ground_dataset([("scene", "embedded")], "What is there?", **run).skipped
    ('scene',)
    """
    options = GroundOptions.of(options, **changes)
    done = store.done(errors=not retry_errors)
    capture = options.capture(given=answers is not None)
    if answers is None:
        capture |= {"max_new_tokens": max_new_tokens, **(generation_options or {})}
    else:
        refuse_without_effect(generation_options)
    asked = _Asked(lmm, prompt, answers, capture)
    plan = asked.plan(batch_size)
    said: dict[str, list[str]] = {"grounded": [], "failed": [], "skipped": [], "near_ties": []}
    total = len(items) if hasattr(items, "__len__") else None
    with progress_bar(total=total, title="grounding", shown=progress) as bar:
        for ahead, opened, broken in _looked_ahead(items, plan, done):
            kept: dict[str, bool] = {}  # id: whether it is a near tie
            bar.update(len(ahead) - len(opened) - len(broken))
            for generations, refused in _answered(asked, plan, opened):
                for id, generation in generations.items():
                    _check_fit(generation, options)
                    try:
                        grounding = ground(generation, opened[id], segmenter=segmenter, nlp=nlp, options=options)
                    except GroundingError as error:
                        refused[id] = str(error)
                        continue
                    if measure is not None:
                        grounding = replace(grounding, measured=measure(grounding))
                    store.write(id, grounding)
                    kept[id] = is_near_tie(generation)
                bar.update(len(generations) + len(refused))
                broken |= refused
            for id, message in broken.items():
                store.write_error(id, message)
            said["grounded"] += [id for id in ahead if id in kept]
            said["failed"] += [id for id in ahead if id in broken]
            said["skipped"] += [id for id in ahead if id in done]
            said["near_ties"] += [id for id in ahead if kept.get(id)]
    return RunSummary(**{name: tuple(ids) for name, ids in said.items()})


def _check_fit(generation: Generation, options: GroundOptions) -> None:
    """Refuse a view, layers or heads that the model does not have: that would fail for every image alike."""
    generation.view(options.view)
    if options.selects_heads:
        select_heads(generation.attention_per_head[:1], layers=options.layers, heads=options.heads)


@dataclass(frozen=True)
class _Asked:
    """What the model is asked, or given as its answer, about each image."""

    lmm: LMM
    prompt: str | Mapping[str, str]
    answers: Mapping[str, Any] | None
    capture: dict[str, Any]

    def prompt_of(self, id: str) -> str:
        return _of(self.prompt, id, "prompt")

    def answer_of(self, id: str) -> Any:
        return None if self.answers is None else _of(self.answers, id, "answer")

    def plan(self, batch_size: int | str) -> FixedPlan | LengthPlan:
        if batch_size != AUTO:
            return FixedPlan(batch_size)
        return LengthPlan(
            self.lmm,
            prompt_of=self.prompt_of,
            answer_of=self.answer_of,
            max_new_tokens=self.capture.get("max_new_tokens", 0),
            per_head=self.capture["per_head"],
        )

    def generations(self, opened: Mapping[str, Image.Image]) -> tuple[dict[str, Generation], dict[str, str]]:
        """One generation per image; where a batch is refused, its images one by one, to find the reason."""
        ids, images = list(opened), list(opened.values())
        prompts = [self.prompt_of(id) for id in ids]
        given = [self.answer_of(id) for id in ids]
        try:
            if self.answers is None:
                results = self.lmm.generate(images, prompts, **self.capture)
            else:
                results = self.lmm.replay(images, prompts, given, **self.capture)
        except GroundingError as error:
            if len(ids) == 1:
                return {}, {ids[0]: str(error)}
            singles = [self.generations({id: opened[id]}) for id in ids]
            return {k: v for good, _ in singles for k, v in good.items()}, {
                k: v for _, bad in singles for k, v in bad.items()
            }
        return dict(zip(ids, results, strict=True)), {}


def _of(values: str | Mapping[str, Any], id: str, what: str) -> Any:
    if isinstance(values, str):
        return values
    if id not in values:
        raise GroundingError(f"no {what} for the id {id!r}")
    return values[id]


def _looked_ahead(
    items: Iterable[tuple[str, Any]], plan: FixedPlan | LengthPlan, done: Collection[str]
) -> Iterator[tuple[list[str], dict[str, Image.Image], dict[str, str]]]:
    """As many items as are planned together: all ids, the images of those to do, and why others cannot be opened."""
    seen: set[str] = set()
    ahead: list[str] = []
    opened: dict[str, Image.Image] = {}
    broken: dict[str, str] = {}
    pixels = 0
    for id, source in items:
        if id in seen:
            raise GroundingError(f"the id {id!r} appears twice; records are kept by id, so each image needs its own")
        seen.add(id)
        ahead.append(id)
        if id not in done:
            try:
                opened[id] = load_image(source)
                pixels += opened[id].width * opened[id].height
            except GroundingError as error:
                broken[id] = str(error)
        if len(ahead) >= plan.look_ahead or pixels >= plan.pixels_ahead:
            yield ahead, opened, broken
            ahead, opened, broken, pixels = [], {}, {}, 0
    if ahead:
        yield ahead, opened, broken


def _answered(
    asked: _Asked, plan: FixedPlan | LengthPlan, opened: Mapping[str, Image.Image]
) -> Iterator[tuple[dict[str, Generation], dict[str, str]]]:
    """`_Asked.generations` of one batch after another; what does not fit into memory comes in smaller ones."""
    waiting = plan.batches(opened)
    while waiting:
        ids, found = waiting.pop(0), None
        try:
            found = asked.generations({id: opened[id] for id in ids})
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and plan.smaller(ids)):
                raise
        if found is None:  # not inside the handler: until it ends, the error holds the tensors of the batch
            release_memory()
            waiting = plan.again([*ids, *itertools.chain(*waiting)])
        else:
            yield found
