"""Segment Anything's own classes: their weights on disk (released checkpoints; directories with a configuration) and a
builder at any size."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.errors import GroundingError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

CHECKPOINT = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"
MODEL_TYPES = {1280: "vit_h", 1024: "vit_l", 768: "vit_b"}  # width of the encoder -> segment_anything's name


@dataclass(frozen=True)
class SamConfig:
    """Arguments of `build_sam`; sizes in pixels and channels."""

    image_size: int = 256
    patch_size: int = 16
    width: int = 96
    depth: int = 4
    heads: int = 4
    window: int = 8
    prompt_width: int = 64


def load_sam(path: Path, model_type: str | None = None) -> Sam:
    """The model in a checkpoint file, or in a directory with `config.json` and `model.safetensors`.

    Args:
        path: file or directory.
        model_type: "vit_h", "vit_l" or "vit_b"; None reads it from the checkpoint. Directories name their own sizes.

    Raises:
        GroundingError: the file is missing, is no checkpoint, or does not fit the model.
    """
    if path.is_dir():
        return _load_directory(path)
    if path.is_file():
        return _load_checkpoint(path, model_type)
    raise GroundingError(
        f"no Segment Anything checkpoint at {path}; download one, for example\n  {CHECKPOINT}\n"
        "and give its path, or ask for 'embedded'"
    )


def _load_directory(path: Path) -> Sam:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = [file for file in ("config.json", "model.safetensors") if not (path / file).is_file()]
    if missing:
        raise GroundingError(f"{path} is no segmenter: {' and '.join(missing)} missing")
    try:
        model = build_sam(**json.loads((path / "config.json").read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise GroundingError(f"{path / 'config.json'} does not hold the arguments of build_sam: {error}") from error
    try:
        weights = load_file(path / "model.safetensors")
    except SafetensorError as error:
        raise GroundingError(f"{path / 'model.safetensors'} is damaged ({error}); restore the file") from error
    _fill(model, weights, path)
    return model


def _load_checkpoint(path: Path, model_type: str | None) -> Sam:
    from segment_anything import sam_model_registry

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise GroundingError(
            f"{path} is not a readable checkpoint ({error}); download it again from\n  {CHECKPOINT}"
        ) from error
    position = weights.get("image_encoder.pos_embed") if isinstance(weights, dict) else None
    if not isinstance(position, Tensor):
        raise GroundingError(f"{path} holds no Segment Anything weights: the key 'image_encoder.pos_embed' is missing")
    found = MODEL_TYPES.get(position.shape[-1])
    wanted = found if model_type is None else model_type
    if wanted not in MODEL_TYPES.values():
        raise GroundingError(
            f"{path}: no model type for an encoder {position.shape[-1]} wide and model_type={model_type!r}; "
            f"known are {', '.join(MODEL_TYPES.values())}"
        )
    if wanted != found:
        raise GroundingError(f"{path} holds a {found} model, not {wanted}; leave model_type out")
    model = sam_model_registry[wanted]()
    _fill(model, weights, path)
    return model


def _fill(model: Sam, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise GroundingError(f"the weights in {path} do not fit the model: {error}") from error


def build_sam(
    *,
    image_size: int = 256,
    patch_size: int = 16,
    width: int = 96,
    depth: int = 4,
    heads: int = 4,
    window: int = 8,
    prompt_width: int = 64,
):
    """A `segment_anything.modeling.Sam` with random weights; every second block of its encoder attends globally.

    Source: segment_anything.build_sam, with the sizes as arguments.
    """
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    side = image_size // patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=4,
            out_chans=prompt_width,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window,
            global_attn_indexes=tuple(range(1, depth, 2)),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_width,
            image_embedding_size=(side, side),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=prompt_width, mlp_dim=4 * prompt_width, num_heads=4),
            transformer_dim=prompt_width,
            iou_head_depth=3,
            iou_head_hidden_dim=prompt_width,
        ),
    )


def save_sam(sam, config: SamConfig, output: Path) -> None:
    """Writes `model.safetensors` and `config.json` (the arguments of `build_sam`)."""
    from safetensors.torch import save_file

    output.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in sam.state_dict().items()}, output / "model.safetensors")
    (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
