"""The embedded SAM: segment-anything's own classes at small size, their sizes as arguments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn


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


def save(sam, config: SamConfig, output: Path) -> None:
    """Writes `model.safetensors` and `config.json` (the arguments of `build_sam`)."""
    from safetensors.torch import save_file

    output.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in sam.state_dict().items()}, output / "model.safetensors")
    (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
