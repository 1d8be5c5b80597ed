"""Masks of single heads: the segmenter prompted where each head alone would point, from the records of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange

from analysis.captured import run_folder
from analysis.heads.points import measured_head_points
from analysis.settings import Settings
from core.errors import GroundingError
from core.images import load_image
from core.masks import encode_chosen
from core.pipeline import Grounding
from core.progress import progress_bar
from core.provenance import segmenter_identity
from core.record_folder import Record, RecordFolder
from core.records import RunStore


@dataclass(frozen=True)
class HeadChoice:
    """Which heads are segmented: every one of `heads` in every one of `layers`, 0-based."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.layers) * len(self.heads)

    @property
    def names(self) -> list[str]:
        """Of each head, layer by layer."""
        return [f"layer {layer} head {head}" for layer in self.layers for head in self.heads]


def choose_heads(shape: tuple[int, int], chosen: dict[str, Any] | None = None, *, number: int = 4) -> HeadChoice:
    """The heads of Table 7: so many layers and heads, evenly spaced from the first on.

    Args:
        shape: (layers, heads) of the model.
        chosen: `layers` and `heads`, each a list of 0-based indices or "all", instead.
        number: layers, and heads of each. Of 32, four are 0, 8, 16 and 24.

    Raises:
        GroundingError: an unknown key, or an index that the model does not have.

    Source: table 7, whose layers and heads 1, 9, 17, 25 of 32 are these counted from 1.
    """
    chosen = chosen or {}
    unknown = sorted(set(chosen) - {"layers", "heads"})
    if unknown:
        raise GroundingError(f"heads has no {', '.join(unknown)}; it takes layers and heads, lists of numbers or 'all'")
    found = []
    for name, size in zip(("layers", "heads"), shape, strict=True):
        asked = chosen.get(name, sorted({place * size // number for place in range(number)}))
        asked = list(range(size)) if asked == "all" else asked
        if not isinstance(asked, Sequence) or isinstance(asked, str) or not asked:
            raise GroundingError(f"{name} is {asked!r}; give a list of numbers such as [0, 8], or 'all'")
        outside = [each for each in asked if not isinstance(each, int) or not 0 <= each < size]
        if outside:
            raise GroundingError(f"{name} {outside} are not among this model's 0 to {size - 1}")
        found.append(tuple(asked))
    return HeadChoice(*found)


def segment_heads(
    settings: Settings, store: RunStore, dataset: Any, choice: HeadChoice, *, segmenter: Any, progress: bool = True
) -> RecordFolder[Record]:
    """Masks of the heads of a run, a record for each image; finished images are not computed again.

    Points that several heads or phrases share are segmented once.

    Args:
        settings: of the notebook; the folder lies in `runs_dir`.
        store: of `analysis.captured.capture_run`, whose records hold the points of every head.
        dataset: anything with `items()`; images without a record are passed over.
        choice: the heads.
        segmenter: what `core.masks.load_segmenter` returned.
        progress: show a progress bar.

    Raises:
        GroundingError: the records hold no points of heads.
    """
    own = {"layers": list(choice.layers), "heads": list(choice.heads), "segmenter": segmenter_identity(segmenter)}
    config = {"heads_of": store.config} | own
    found: RecordFolder[Record] = RecordFolder(settings.shared("heads", run_folder("heads", config)), config)
    done, held = found.done(), set(store.ids())
    missing = [(id, image) for id, image in dataset.items() if id in held and id not in done]
    for id, image in progress_bar(missing, title=f"masks of {len(choice)} heads", shown=progress):
        points = measured_head_points(store.read(id))[:, list(choice.layers)][:, :, list(choice.heads)]
        flat = rearrange(points, "p l n c -> (p l n) c")
        unique, places = flat.unique(dim=0, return_inverse=True) if len(flat) else (flat, torch.zeros(0).long())
        if len(unique):
            segmenter.set_image(load_image(image))
        masks, _ = encode_chosen(segmenter.predict_in_parts(unique, choice="last") if len(unique) else (), "last")
        shape = {"l": len(choice.layers), "n": len(choice.heads)}
        places = rearrange(places.to(torch.int32), "(p l n) -> p (l n)", **shape)
        found.write(id, Record({"places": places}, {"masks": [each[0] for each in masks]}))
    return found


def groundings_of_heads(
    store: RunStore, masks: RecordFolder[Record], dataset: Any
) -> Iterator[tuple[str, list[Grounding]]]:
    """Record id and, in the order of `HeadChoice.names`, the grounding with the masks of each head; of every image that
    has both records, each read once.
    """
    for id, grounding in dataset.records(store):
        if masks.has(id):
            record = masks.read(id)
            codes = [(code,) for code in record.about["masks"]]
            heads = record.tensors["places"].T.tolist()
            yield id, [replace(grounding, masks=tuple(codes[place] for place in places)) for places in heads]
