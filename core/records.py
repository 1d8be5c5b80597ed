"""A run's records on disk: one file per image, written whole or not at all, so that a run can be killed and continued.

    <run>/run.json                      configuration, package versions, creation time
    <run>/records/<id>.safetensors      a grounding: tensors, and the rest as JSON in the file's metadata
    <run>/records/<id>.json             an image that could not be grounded: {"id", "error"}

Ids are percent-encoded in file names. Attention is kept as its float32 mean over the answer plus float16 residuals
with one float32
scale per map: what equation 3 leaves is exactly the residuals, which float16 of the raw maps would lose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch
from einops import reduce
from torch import Tensor

from core.atomic import TEMPORARY, remove_stale, write_atomically
from core.claim import claim, read_claim, read_object
from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View
from core.phrases import Phrase
from core.pipeline import Grounding

LONGEST_NAME = 200  # bytes of an encoded id; file systems allow 255 with our endings


class RunStore:
    """The records of one run under one configuration.

    Several processes may write to one store as long as each id is written by one of them.
    """

    def __init__(
        self,
        directory: str | Path,
        config: dict[str, Any] | None = None,
        *,
        overwrite: bool = False,
        keep_per_head: bool = False,
    ):
        """Open a run, or create it.

        Args:
            directory: the run's directory; made if absent.
            config: everything that determines the results (model, revision, prompt, options, seed), as JSON values; see
                `core.provenance.run_config`. None opens an existing run as it is.
            overwrite: drop the records of another configuration.
            keep_per_head: also keep the maps of every layer and head (t * l * n * k values).

        Raises:
            GroundingError: no run to open, a run with another configuration, or a configuration that is not JSON.
        """
        self.directory = Path(directory)
        self.keep_per_head = keep_per_head
        self._records = self.directory / "records"
        self._about = self.directory / "run.json"
        if config is None and not self._about.is_file():
            raise GroundingError(
                f"no run at {self.directory} (run.json is missing); give the configuration to start one"
            )
        if config is None:
            about = read_claim(self._about)
        else:
            drop = self._records if overwrite else None
            about = claim(self._about, config, drop=drop, advice="overwrite=True to drop its records")
        self.provenance: dict[str, Any] = about
        self.config: dict[str, Any] = self.provenance["config"]
        self._records.mkdir(exist_ok=True)
        remove_stale(self._records)
        remove_stale(self.directory)

    def done(self, *, errors: bool = True) -> set[str]:
        """Ids that have a record; without those that hold an error if `errors` is False."""
        return set(self._ids(".safetensors")) | (set(self.errors()) if errors else set())

    def errors(self) -> dict[str, str]:
        """Message of every id that could not be grounded."""
        grounded = set(self._ids(".safetensors"))
        failed = [id for id in self._ids(".json") if id not in grounded]
        found = {id: read_object(self._path(id, ".json"), advice="delete the file and run again") for id in failed}
        return {id: content.get("error", "no reason is kept") for id, content in found.items()}

    def write(self, id: str, grounding: Grounding) -> None:
        """Keep a grounding, on disk when this returns; it replaces an earlier record of the same id.

        Raises:
            GroundingError: an id that makes no file name.
        """
        from safetensors.torch import save

        tensors, about = _pack(grounding, self.keep_per_head)
        about["id"] = id
        write_atomically(self._path(id, ".safetensors"), save(tensors, {"grounding": json.dumps(about)}))
        self._path(id, ".json").unlink(missing_ok=True)

    def write_error(self, id: str, message: str) -> None:
        """Keep the reason why an id has no grounding."""
        write_atomically(self._path(id, ".json"), json.dumps({"id": id, "error": message}).encode())

    def read(self, id: str) -> Grounding:
        """The grounding of an id. Its attention equals what was written up to 1/2048 of each map's largest residual.

        Raises:
            GroundingError: no record, an error record, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(id, ".safetensors")
        if not path.is_file():
            message = self.errors().get(id)
            why = f"it could not be grounded: {message}" if message else f"the run has {len(self)} others"
            raise GroundingError(f"no record of {id!r} in {self.directory}; {why}")
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads(file.metadata()["grounding"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise GroundingError(f"the record {path} is damaged ({error}); delete the file and run again") from error
        return _unpack(tensors, about)

    def ids(self) -> list[str]:
        """Ids of all groundings, sorted."""
        return sorted(self._ids(".safetensors"))

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[tuple[str, Grounding]]:
        """(id, grounding) in the order of ids, read one at a time."""
        return ((id, self.read(id)) for id in self.ids())

    def _ids(self, ending: str) -> list[str]:
        files = self._records.glob(f"*{ending}")
        return [unquote(file.name.removesuffix(ending)) for file in files if TEMPORARY not in file.name]

    def _path(self, id: str, ending: str) -> Path:
        name = quote(id, safe=" ,;=+@()[]{}!'").replace(".", "%2E")
        if not 0 < len(name) <= LONGEST_NAME:
            raise GroundingError(
                f"a record's id must encode to 1..{LONGEST_NAME} characters; {id[:60]!r} has {len(name)}"
            )
        return self._records / f"{name}{ending}"


def _pack(grounding: Grounding, keep_per_head: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    generation = grounding.generation
    tensors = {
        "token_ids": generation.token_ids,
        "prompt_ids": generation.prompt_ids,
        "token_spans": generation.token_spans,
        "maps": grounding.maps,
        "points": grounding.points,
        "scores": grounding.scores,
    }
    tensors |= _compress("attention", generation.attention)
    if keep_per_head and generation.attention_per_head is not None:
        tensors |= _compress("attention_per_head", generation.attention_per_head)
    tensors |= {f"view.{i}": view.index for i, view in enumerate(generation.views)}
    about = {
        "image_size": list(grounding.image_size),
        "text": generation.text,
        "model": generation.model,
        "views": [{"name": view.name, "box": list(view.box)} for view in generation.views],
        "phrases": [asdict(phrase) for phrase in grounding.phrases],
        "masks": grounding.masks,
        "settings": grounding.settings,
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, about


def _unpack(tensors: dict[str, Tensor], about: dict[str, Any]) -> Grounding:
    size = tuple(about["image_size"])
    views = [View(view["name"], tensors[f"view.{i}"], tuple(view["box"])) for i, view in enumerate(about["views"])]
    generation = Generation(
        text=about["text"],
        token_ids=tensors["token_ids"],
        prompt_ids=tensors["prompt_ids"],
        attention=_expand("attention", tensors),
        attention_per_head=_expand("attention_per_head", tensors),
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
    return Grounding(
        size,
        generation,
        tuple(phrases),
        tensors["maps"],
        tensors["points"],
        masks,
        tensors["scores"],
        about["settings"],
    )


def _compress(name: str, attention: Tensor) -> dict[str, Tensor]:
    """Mean over the answer (float32), and each map's distance from it (float16, in units of its largest value)."""
    mean = reduce(attention, "t ... -> ...", "mean") if len(attention) else attention.new_zeros(attention.shape[1:])
    residuals = attention - mean
    scale = reduce(residuals.abs(), "... k -> ... 1", "max") if residuals.numel() else residuals[..., :1]
    shares = residuals / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return {f"{name}.mean": mean, f"{name}.scale": scale, f"{name}.residuals": shares.to(torch.float16)}


def _expand(name: str, tensors: dict[str, Tensor]) -> Tensor | None:
    if f"{name}.mean" not in tensors:
        return None
    return tensors[f"{name}.mean"] + tensors[f"{name}.residuals"].to(torch.float32) * tensors[f"{name}.scale"]
