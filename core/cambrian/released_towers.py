"""The encoders that published Cambrian-1 checkpoints name: what they see, and where their weights are.

CLIP and DINOv2 are read with transformers' classes; SigLIP and CLIP's ConvNeXt are OpenCLIP models around timm's, of
which only timm's part is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core.cambrian.towers import timm_body
from core.cambrian.weights import tensors_of
from core.encoders.normalisation import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from core.errors import GroundingError

HUBS = {  # beginning of an OpenCLIP encoder's name: its hub id
    "siglip/CLIP-ViT-SO400M-14-384": "timm/ViT-SO400M-14-SigLIP-384",
    "siglip/CLIP-ViT-SO400M-14": "timm/ViT-SO400M-14-SigLIP",
    "clip-convnext-XXL": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
    "clip-convnext-L": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
TRUNK = "visual.trunk."  # timm's part of an OpenCLIP model
CONVNEXT_SIZE = 1024  # pixels, where the name says nothing


@dataclass(frozen=True)
class ReleasedTower:
    """An encoder's description, see `core.cambrian.configuration.check_tower`, and what reads its weights."""

    given: dict[str, Any]
    weights: Callable[[], dict[str, Tensor]]


def released_tower(source: str, name: str, side: int, *, layer: int) -> ReleasedTower:
    """An encoder by the name that config.json gives it.

    Args:
        source: the checkpoint, in whose folder `towers` it is looked for first.
        name: such as "facebook/dinov2-giant-res378"; "-res378" is the size in pixels at which it is shown pictures.
        side: features along one side of its grid, after resampling.
        layer: index into CLIP's hidden states; the others give their last output.

    Raises:
        GroundingError: an unknown encoder, or nothing there.
    """
    where = Path(source) / "towers" / name.rpartition("/")[2]
    size = re.search(r"-res(\d+)", name)
    given = {"side": side, "layer": None, "skip": 0, "stages": 0, "size": int(size[1]) if size else None}
    if name.startswith("openai/clip"):
        return _clip(str(where) if where.is_dir() else name, given | {"layer": layer, "skip": 1})
    if name.startswith("facebook/dinov2"):
        hub = name.replace(size[0], "") if size else name
        return _dinov2(str(where) if where.is_dir() else hub, given | {"skip": 1})
    hub = next((hub for start, hub in HUBS.items() if name.startswith(start)), None)
    if hub is None:
        raise GroundingError(
            f"the encoder {name!r} is not known; Cambrian-1's are openai/clip*, facebook/dinov2*, {', '.join(HUBS)}"
        )
    return _open_clip(str(where) if where.is_dir() else hub, given, name)


def _clip(source: str, given: dict[str, Any]) -> ReleasedTower:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = _loaded(CLIPVisionConfig, source)
    mean, std = _normalisation(source, CLIP_MEAN, CLIP_STD)
    given |= {"body": _plain(config), "size": config.image_size, "width": config.hidden_size}
    return ReleasedTower(given | _seen(mean, std), lambda: _loaded(CLIPVisionModel, source).state_dict())


def _dinov2(source: str, given: dict[str, Any]) -> ReleasedTower:
    from transformers import Dinov2Config, Dinov2Model

    config = _loaded(Dinov2Config, source)
    mean, std = _normalisation(source, IMAGENET_MEAN, IMAGENET_STD)
    given |= {"body": _plain(config), "size": given["size"] or config.image_size, "width": config.hidden_size}
    return ReleasedTower(given | _seen(mean, std), lambda: _loaded(Dinov2Model, source).state_dict())


def _open_clip(source: str, given: dict[str, Any], name: str) -> ReleasedTower:
    """SigLIP or ConvNeXt. Pictures are padded with CLIP's mean colour whatever the encoder's own is, as published."""
    import torch

    settings = _json(source, "open_clip_config.json") or {}
    own = _json(source, "config.json") or {}
    architecture = settings.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name") or own.get("architecture")
    if architecture is None:
        raise GroundingError(
            f"nothing says which timm model {source!r} is; an OpenCLIP folder has open_clip_config.json with a "
            "timm_model_name, timm's a config.json with an architecture"
        )
    body = {"architecture": architecture, "model_args": dict(own.get("model_args") or {})}
    with torch.device("meta"):
        model = timm_body(body)
    if hasattr(model, "stages"):
        widths = [stage["num_chs"] for stage in model.feature_info]
        stages = len(widths) if "multi-stage" in name else 1
        given |= {"stages": stages, "width": sum(widths[-stages:]), "size": given["size"] or CONVNEXT_SIZE}
    else:
        given |= {"width": model.embed_dim, "size": model.patch_embed.img_size[0], "skip": model.num_prefix_tokens}
    told = settings.get("preprocess_cfg") or own.get("pretrained_cfg") or {}
    usual = ((0.5,) * 3, (0.5,) * 3) if "siglip" in name.lower() else (CLIP_MEAN, CLIP_STD)
    mean, std = told.get("mean", usual[0]), told.get("std", usual[1])
    wanted = set(model.state_dict())
    return ReleasedTower(given | {"body": body} | _seen(mean, std, fill=CLIP_MEAN), lambda: _trunk(source, wanted))


def _trunk(source: str, wanted: set[str]) -> dict[str, Tensor]:
    """timm's weights out of an OpenCLIP file, or out of timm's own; heads and texts stay behind."""
    for name in WEIGHTS:
        if (file := _file(source, name)) is not None:
            found = tensors_of(file)
            if any(key.startswith(TRUNK) for key in found):
                found = {key.removeprefix(TRUNK): value for key, value in found.items() if key.startswith(TRUNK)}
            return {key: value for key, value in found.items() if key in wanted}
    raise GroundingError(f"{source!r} has no weights; give one of {', '.join(WEIGHTS)}")


def _seen(mean: Any, std: Any, *, fill: Any = None) -> dict[str, Any]:
    return {"mean": list(mean), "std": list(std), "fill": [int(255 * channel) for channel in fill or mean]}


def _normalisation(source: str, mean: Any, std: Any) -> tuple[Any, Any]:
    told = _json(source, "preprocessor_config.json") or {}
    return told.get("image_mean", mean), told.get("image_std", std)


def _plain(config: Any) -> dict[str, Any]:
    """Without what is about its files: built into another model, it takes that one's dtype."""
    files = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    return {key: value for key, value in config.to_dict().items() if key not in files}


def _loaded(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise GroundingError(_absent(source, error)) from error


def _json(source: str, name: str) -> dict[str, Any] | None:
    file = _file(source, name)
    return None if file is None else json.loads(Path(file).read_text())


def _file(source: str, name: str) -> str | None:
    from transformers.utils import cached_file

    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise GroundingError(_absent(source, error)) from error


def _absent(source: str, error: Exception) -> str:
    return (
        f"the encoder {source!r} could not be read: {str(error).strip().splitlines()[0]} Put it into the folder "
        "towers/<last part of its name> of the checkpoint, or let this machine download it"
    )
