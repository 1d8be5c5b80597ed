"""The run that notebooks share: each image is answered once by each model, and every question is put to the record."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from analysis.heads.points import HEAD_POINTS, measure_head_points
from analysis.heads.statistics import (
    HEAD_MAPS,
    MAPS_LIMIT,
    STATISTICS,
    measure_head_maps,
    measure_head_statistics,
)
from analysis.settings import Settings, describe_run
from core.attention import select_heads
from core.embeddings import keep_embeddings
from core.errors import GroundingError
from core.generation import Generation
from core.options import PRESETS, GroundOptions
from core.pipeline import Grounding
from core.provenance import segmenter_identity
from core.records import RunStore
from core.run import RunSummary, ground_dataset

SELECTED = "selected_attention"
SELECTIONS = tuple(dict.fromkeys((o.layers, o.heads) for o in PRESETS.values() if o.selects_heads))
"""The (layers, heads) that the presets average, of which a record keeps the maps of its tokens."""


def capture_run(
    settings: Settings,
    dataset: Any,
    *,
    lmm: Any,
    segmenter: Any,
    nlp: Any,
    head_maps: int = MAPS_LIMIT,
    told: bool = True,
) -> RunStore:
    """Answer and ground every image of a dataset that has no record yet, keeping all that later questions need.

    Beside the maps of every token, a record holds each head's points and statistics and the maps of the heads that
    presets single out, so that other normalisations, heads, presets and prompts of the segmenter follow from it without
    the model; and the segmenter keeps its embeddings of the images. With the option `per_head: false` what is known of
    heads is left out.

    Args:
        settings: of the notebook. Runs lie in the folder that notebooks share (`runs_dir`), one for each configuration.
        dataset: anything with `items()`, (record id, image) pairs.
        lmm, segmenter, nlp: as for `core.ground_dataset`.
        head_maps: keep every head's map of every phrase, too, where it takes at most so many values (4 bytes each), so
            that any set of heads can be averaged later. The default keeps those of small models; LLaVA-1.5-7B has 32 *
            32 heads of 576 cells, 589 824 values or 2.4 MB for each phrase.
        told: print how many images have a record.
    """
    if segmenter is not None:
        marks = segmenter_identity(segmenter)
        own = run_folder(marks.pop("name"), {"at": marks.pop("fingerprint")} | marks)
        keep_embeddings(segmenter, settings.shared("embeddings", own))
    loaded = {"lmm": lmm, "segmenter": segmenter, "nlp": nlp}
    run = settings.run_options(**{"per_head": True} | settings.options)
    config = settings.run_config(options=run["options"], measured=sorted(_names(run["options"], head_maps)), **loaded)
    store = RunStore(settings.shared("answers", run_folder(lmm.name, config)), config)
    summary = ground_dataset(
        dataset.items(),
        settings.prompt,
        store=store,
        measure=partial(measure_run, head_maps=head_maps),
        batch_size=settings.batch_size,
        **loaded,
        **run,
    )
    if told:
        told_ties = f" {describe_ties(summary)}" if summary.near_ties else ""
        print(f"{settings.model}: {describe_run(store, [record_id for record_id, _ in dataset.items()])}{told_ties}")
    return store


def describe_ties(summary: RunSummary) -> str:
    """Which answers of a run may depend on having been given in a batch."""
    ids = summary.near_ties
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return (
        f"{len(ids)} answers were chosen within rounding somewhere, so in another batch, or one by one, they may read "
        f"otherwise: {', '.join(ids[:5])}{more}."
    )


def measure_run(grounding: Grounding, *, head_maps: int = MAPS_LIMIT) -> dict[str, Tensor]:
    """What `capture_run` keeps of the heads with a record; a `measure` of `core.ground_dataset`."""
    per_head, found = grounding.generation.attention_per_head, {}
    if HEAD_POINTS in _names(grounding.options, head_maps):
        found |= measure_head_points(grounding) | measure_head_statistics(grounding)
        if per_head[0].numel() <= head_maps:
            found |= measure_head_maps(grounding)
    for layers, heads in SELECTIONS if per_head is not None else ():
        found[_selected(layers, heads)] = select_heads(per_head, layers=layers, heads=heads)
    return found


def recorded_generation(grounding: Grounding, options: GroundOptions) -> Generation:
    """The generation of a record with the attention that some options read: the mean over all heads, or over a
    selection that was kept with the record.

    Raises:
        GroundingError: the record knows nothing of that selection, or read other rows.
    """
    generation = grounding.generation
    row = generation.model.get("row", options.row)
    if row != options.row:
        raise GroundingError(f"the records read the rows {row!r}, not {options.row!r}: that needs a run of its own")
    if not options.selects_heads:
        return generation
    kept = grounding.measured.get(_selected(options.layers, options.heads))
    if kept is None and generation.attention_per_head is None:
        raise GroundingError(
            f"the records hold no maps of layers {options.layers} and heads {options.heads}; they keep those that the "
            "presets single out, unless per_head is false: make a run with these options instead"
        )
    if kept is None:
        kept = select_heads(generation.attention_per_head, layers=options.layers, heads=options.heads)
    return replace(generation, attention=kept, attention_per_head=None, prompt_attention=None)


def run_folder(name: str, config: Mapping[str, Any]) -> str:
    """A readable folder name for a run, another one for every configuration."""
    words = re.sub(r"[^A-Za-z0-9.]+", "_", name)[-60:].strip("_.")
    told = json.dumps(config, sort_keys=True, default=str)
    return f"{words}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def _names(options: GroundOptions, head_maps: int) -> set[str]:
    """What a record keeps beside what every record holds. Heads cannot be compared one by one where points are taken
    after upsampling, or where maps are normalised by the prompt's, which is known of their mean alone.
    """
    if not options.capture()["per_head"]:
        return set()
    single = options.aggregation != "pixel_max" and options.normalization != "prompt"
    points = {HEAD_POINTS, *STATISTICS, f"{HEAD_MAPS} of at most {head_maps} values"} if single else set()
    return points | {_selected(layers, heads) for layers, heads in SELECTIONS}


def _selected(layers: Any, heads: Any) -> str:
    said = {
        name: "all" if chosen is None else ",".join(map(str, chosen))
        for name, chosen in (("layers", layers), ("heads", heads))
    }
    return f"{SELECTED} layers={said['layers']} heads={said['heads']}"
