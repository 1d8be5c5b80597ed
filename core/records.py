"""A run's groundings on disk: `core.record_folder` with a grounding in each record.

Attention is kept as its float32 mean over the answer plus float16 residuals with one float32 scale per map: what
equation 3 leaves is exactly the residuals, which float16 of the raw maps would lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View
from core.options import GroundOptions
from core.phrases import Phrase
from core.pipeline import Grounding
from core.record_folder import Record, RecordFolder

MEASURED = "measured."


class RunStore(RecordFolder[Grounding]):
    """The groundings of one run. Their attention comes back up to 1/2048 of each map's largest residual.

    >>> import tempfile
    >>> from core import RunStore
    >>> store = RunStore(tempfile.mkdtemp(), {"model": "embedded"})
    >>> store.write_error("photo", "the image file is truncated")
    >>> store.ids(), store.errors()
    ([], {'photo': 'the image file is truncated'})
    """

    kind = "grounding"

    def __init__(
        self,
        directory: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        keep_maps: bool = True,
        keep_per_head: bool = False,
    ):
        """Open a run, or create it; `RecordFolder` describes the other arguments and what is refused.

        Args:
            keep_maps: keep the attention and the phrases' maps; without them groundings come back with k = 0, and
                points, masks and what was measured are all that can be read.
            keep_per_head: also keep the maps of every layer and head (t * l * n * k values).

        Raises:
            GroundingError: maps of every head are to be kept and others not, or what `RecordFolder` refuses.
        """
        if keep_per_head and not keep_maps:
            raise GroundingError("keep_per_head=True keeps maps, and keep_maps=False leaves them out; choose one")
        super().__init__(directory, config, overwrite=overwrite)
        self.keep_maps, self.keep_per_head = keep_maps, keep_per_head

    def pack(self, kept: Grounding) -> Record:
        """A grounding as a record; views, phrases, masks and options are in the JSON."""
        return _pack(kept, keep_maps=self.keep_maps, keep_per_head=self.keep_per_head)

    def unpack(self, record: Record) -> Grounding:
        """The grounding that `pack` was given, up to the rounding of its attention."""
        return _unpack(record.tensors, record.about)


def _pack(grounding: Grounding, *, keep_maps: bool, keep_per_head: bool) -> Record:
    generation = grounding.generation
    tensors = {
        "token_ids": generation.token_ids,
        "prompt_ids": generation.prompt_ids,
        "token_spans": generation.token_spans,
        "maps": grounding.maps if keep_maps else grounding.maps[:, :0],
        "points": grounding.points,
        "scores": grounding.scores,
    }
    tensors |= _compress("attention", generation.attention if keep_maps else generation.attention[:, :0])
    if generation.prompt_attention is not None:
        tensors["prompt_attention"] = generation.prompt_attention if keep_maps else generation.prompt_attention[:0]
    if keep_per_head and generation.attention_per_head is not None:
        tensors |= _compress("attention_per_head", generation.attention_per_head)
    tensors |= {f"view.{i}": view.index for i, view in enumerate(generation.views)}
    tensors |= {f"{MEASURED}{name}": tensor.detach().cpu().clone() for name, tensor in grounding.measured.items()}
    about = {
        "image_size": list(grounding.image_size),
        "text": generation.text,
        "model": generation.model,
        "views": [{"name": view.name, "box": list(view.box)} for view in generation.views],
        "phrases": [asdict(phrase) for phrase in grounding.phrases],
        "masks": grounding.masks,
        "options": grounding.options.as_dict(),
        "segmenter": grounding.segmenter,
        "nlp": grounding.nlp,
    }
    return Record(tensors, about)


def _unpack(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> Grounding:
    size = tuple(about["image_size"])
    views = [View(view["name"], tensors[f"view.{i}"], tuple(view["box"])) for i, view in enumerate(about["views"])]
    generation = Generation(
        text=about["text"],
        token_ids=tensors["token_ids"],
        prompt_ids=tensors["prompt_ids"],
        attention=_expand("attention", tensors),
        attention_per_head=_expand("attention_per_head", tensors),
        prompt_attention=tensors.get("prompt_attention"),
        views=tuple(views),
        token_spans=tensors["token_spans"],
        image_size=size,
        model=about["model"],
    )
    phrases = [
        Phrase(p["text"], tuple(p["span"]), p["root"], tuple(p["root_span"]), tuple(p["tokens"]))
        for p in about["phrases"]
    ]
    masks = tuple(tuple(codes) for codes in about["masks"])
    measured = {name.removeprefix(MEASURED): tensors[name] for name in tensors if name.startswith(MEASURED)}
    return Grounding(
        size,
        generation,
        tuple(phrases),
        tensors["maps"],
        tensors["points"],
        masks,
        tensors["scores"],
        GroundOptions(**about["options"]),
        segmenter=about["segmenter"],
        nlp=about["nlp"],
        measured=measured,
    )


def _compress(name: str, attention: Tensor) -> dict[str, Tensor]:
    """Mean over the answer (float32), and each map's distance from it (float16, in units of its largest value)."""
    mean = reduce(attention, "t ... -> ...", "mean") if len(attention) else attention.new_zeros(attention.shape[1:])
    residuals = attention - mean
    scale = reduce(residuals.abs(), "... k -> ... 1", "max") if residuals.numel() else residuals[..., :1]
    shares = residuals / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return {f"{name}.mean": mean, f"{name}.scale": scale, f"{name}.residuals": shares.to(torch.float16)}


def _expand(name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    if f"{name}.mean" not in tensors:
        return None
    return tensors[f"{name}.mean"] + tensors[f"{name}.residuals"].to(torch.float32) * tensors[f"{name}.scale"]
