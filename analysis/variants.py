"""A captured run grounded in other ways: other options on the same answers, masks included, without the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.captured import recorded_generation, run_folder
from analysis.settings import Settings
from core.errors import GroundingError
from core.options import GroundOptions
from core.phrases import pipeline_name
from core.pipeline import Grounding, ground
from core.progress import progress_bar
from core.provenance import segmenter_identity
from core.records import RunStore

if TYPE_CHECKING:
    from core.masks import Segmenter


def ground_variant(
    settings: Settings,
    store: RunStore,
    dataset: Any,
    options: GroundOptions | str,
    *,
    segmenter: Segmenter | None,
    nlp: Any,
    name: str,
    progress: bool = True,
) -> RunStore:
    """Ground the answers of a run again under other options; phrases, points and masks get a folder of their own.

    Interrupt it and call it again: finished images are not computed twice, and neither are those of another notebook
    that shares `runs_dir`. An image that cannot be grounded so becomes an error record.

    Args:
        settings: of the notebook; the folder lies in `runs_dir`, one for each run, options and segmenter.
        store: of `analysis.captured.capture_run`.
        dataset: anything with `items()`; images without a record in `store` are passed over.
        options: a preset's name, or `GroundOptions`.
        segmenter: None stops at the points.
        nlp: finds the noun phrases where these options take others than the run did.
        name: what the variant is called, for its folder and the progress bar.
        progress: show a progress bar.

    Returns:
        Records without maps, whose `options` are those asked for; the run itself, where they are its own.

    Raises:
        GroundingError: the run does not hold what the options need (other rows, other heads than those kept).
    """
    options = GroundOptions.of(options)
    config = variant_config(store, options, segmenter=segmenter, nlp=nlp)
    if config["segmenter"] == store.config["segmenter"] and _same(options, GroundOptions(**store.config["options"])):
        return store
    variant = RunStore(settings.shared("variants", run_folder(name, config)), config, keep_maps=False)
    done, held = variant.done(), set(store.ids())
    missing = [(id, image) for id, image in dataset.items() if id in held and id not in done]
    for id, image in progress_bar(missing, title=name, shown=progress and bool(missing)):
        record = store.read(id)
        generation = recorded_generation(record, options)
        generation.view(options.view)
        maps = replace(options, layers=None, heads=None)  # what they select is the generation's attention now
        phrases = record.phrases if _same_phrases(record, options, nlp) else None
        try:
            found = ground(generation, image, segmenter=segmenter, nlp=nlp, phrases=phrases, options=maps)
        except GroundingError as error:
            variant.write_error(id, str(error))
            continue
        variant.write(id, replace(found, options=options))
    return variant


def variant_config(store: RunStore, options: GroundOptions, *, segmenter: Segmenter | None, nlp: Any) -> dict[str, Any]:
    """The configuration of a variant's records: the run that it is of, and what is done otherwise."""
    return {
        "variant_of": store.config,
        "options": options.as_dict(),
        "segmenter": segmenter_identity(segmenter),
        "nlp": pipeline_name(nlp),
    }


def _same(first: GroundOptions, second: GroundOptions) -> bool:
    """Whether two options ground alike; `per_head` decides only what is kept."""
    return replace(first, per_head=False) == replace(second, per_head=False)


def _same_phrases(record: Grounding, options: GroundOptions, nlp: Any) -> bool:
    """Whether these options find the phrases that the record has."""
    ways = [(each.pronouns, each.first_tokens) for each in (record.options, options)]
    return ways[0] == ways[1] and record.nlp == pipeline_name(nlp)
