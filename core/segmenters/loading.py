"""Which backend serves a checkpoint: of this package, of segment-anything, or of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.errors import GroundingError
from core.sam import load_sam
from core.segmenters.backend import Backend
from core.segmenters.segment_anything import SegmentAnything
from core.segmenters.transformers_sam import TransformersSam
from core.segmenters.transformers_sam2 import TransformersSam2
from core.segmenters.transformers_sam_hq import TransformersSamHQ
from core.weights import weights_path

BACKENDS: dict[str, type[TransformersSam]] = {
    "edgetam": TransformersSam2,
    "edgetam_video": TransformersSam2,
    "sam": TransformersSam,
    "sam2": TransformersSam2,
    "sam2_video": TransformersSam2,  # the released checkpoints: transformers takes their image model out of them
    "sam3_tracker": TransformersSam2,
    "sam3_video": TransformersSam2,
    "sam_hq": TransformersSamHQ,
}
"""The `model_type` of a transformers checkpoint -> its backend; the model's class is the one that transformers'
`AutoModelForMaskGeneration` has for it."""

WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # how files of weights end


def load_backend(name: str | Path, *, model_type: str | None = None) -> Backend:
    """The model of a name, on the CPU; arguments and refusals are those of `core.masks.load_segmenter`."""
    path = weights_path("sam") if name in ("embedded", "embedded/sam") else Path(name)
    if path.is_dir():
        known = _type_of(path)
        return SegmentAnything(load_sam(path)) if known is None else _load(str(path), known)
    if path.is_file() or not _is_hub_id(str(name)):
        return SegmentAnything(load_sam(path, model_type))
    return _load(str(name), None)


def _type_of(directory: Path) -> str | None:
    """The model type of a transformers directory; None of any other."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not name.lower().endswith(WEIGHTS)


def _load(source: str, model_type: str | None) -> Backend:
    from transformers import AutoImageProcessor, AutoModelForMaskGeneration, PreTrainedConfig

    with _told(source):
        if model_type is None:
            model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if model_type not in BACKENDS:
            raise GroundingError(
                f"{source!r} holds a model of type {model_type!r}, which is no segmenter known here; known are "
                f"{', '.join(BACKENDS)}, and checkpoints of the segment-anything package"
            )
        processor = AutoImageProcessor.from_pretrained(source)
        model, report = AutoModelForMaskGeneration.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise GroundingError(
            f"{source!r} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}, ...), which would stay "
            f"random; get a complete checkpoint of type {model_type!r}"
        )
    return BACKENDS[model_type](model, processor)


@contextmanager
def _told(source: str) -> Iterator[Any]:
    """What transformers says of a checkpoint that it cannot load, with what can be given instead."""
    from safetensors import SafetensorError

    try:
        yield
    except GroundingError:
        raise
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GroundingError(
            f"no segmenter could be loaded from {source!r}: {said} Give a checkpoint of the segment-anything package, "
            "a directory written by save_pretrained (config.json, "
            "preprocessor_config.json, weights), a hub id that this machine can download or has in its cache, or "
            "'embedded'"
        ) from error
