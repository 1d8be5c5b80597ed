"""Ground many images, resumably."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.attention import select_heads
from core.errors import GroundingError
from core.generation import Generation
from core.images import load_image
from core.options import GroundOptions
from core.pipeline import Grounding, ground, refuse_without_effect
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
    """What one call of `ground_dataset` did: ids grounded now, ids that failed now, ids that had a record already."""

    grounded: tuple[str, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


def ground_dataset(
    items: Iterable[tuple[str, Any]],
    prompt: str | Mapping[str, str],
    *,
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Language,
    store: RunStore,
    answers: Mapping[str, Any] | None = None,
    batch_size: int = 1,
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
        batch_size: images per forward pass.
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
    RunSummary(grounded=('scene',), failed=('gone',), skipped=())
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
    grounded: list[str] = []
    failed: list[str] = []
    skipped: list[str] = []
    total = len(items) if hasattr(items, "__len__") else None
    with progress_bar(total=total, title="grounding", shown=progress) as bar:
        for batch in _batches(items, batch_size):
            todo = [(id, source) for id, source in batch if id not in done]
            skipped += [id for id, _ in batch if id in done]
            opened, broken = _open(todo)
            generations, refused = _generations(lmm, opened, prompt, answers, capture)
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
                grounded.append(id)
            for id, message in {**broken, **refused}.items():
                store.write_error(id, message)
                failed.append(id)
            bar.update(len(batch))
    return RunSummary(tuple(grounded), tuple(failed), tuple(skipped))


def _check_fit(generation: Generation, options: GroundOptions) -> None:
    """Refuse a view, layers or heads that the model does not have: that would fail for every image alike."""
    generation.view(options.view)
    if options.selects_heads:
        select_heads(generation.attention_per_head[:1], layers=options.layers, heads=options.heads)


def _batches(items: Iterable[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    if size < 1:
        raise GroundingError(f"batch_size must be at least 1, not {size}")
    seen: set[str] = set()
    batch: list[tuple[str, Any]] = []
    for id, source in items:
        if id in seen:
            raise GroundingError(f"the id {id!r} appears twice; records are kept by id, so each image needs its own")
        seen.add(id)
        batch.append((id, source))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _open(todo: list[tuple[str, Any]]) -> tuple[dict[str, Image.Image], dict[str, str]]:
    opened, broken = {}, {}
    for id, source in todo:
        try:
            opened[id] = load_image(source)
        except GroundingError as error:
            broken[id] = str(error)
    return opened, broken


def _generations(
    lmm: LMM,
    opened: dict[str, Image.Image],
    prompt: str | Mapping[str, str],
    answers: Mapping[str, Any] | None,
    capture: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """One generation per image; where a batch is refused, its images one by one, to find the reason."""
    if not opened:
        return {}, {}
    ids = list(opened)
    prompts = [_of(prompt, id, "prompt") for id in ids]
    texts = None if answers is None else [_of(answers, id, "answer") for id in ids]
    try:
        if texts is None:
            results = lmm.generate(list(opened.values()), prompts, **capture)
        else:
            results = lmm.replay(list(opened.values()), prompts, texts, **capture)
    except GroundingError as error:
        if len(ids) == 1:
            return {}, {ids[0]: str(error)}
        singles = [_generations(lmm, {id: opened[id]}, prompt, answers, capture) for id in ids]
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
