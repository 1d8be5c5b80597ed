"""Tiny random segmenters of transformers' own classes, written by `save_pretrained`, without downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 128
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 16}
DECODER = {
    "hidden_size": 32,
    "mlp_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "iou_head_hidden_dim": 32,
}
LEVELS = {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 32}
MEMORY = {  # of the models for videos, which no image needs
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 32,
    "memory_attention_rope_feat_sizes": [8, 8],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 16,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 32,
    "mask_downsampler_embed_dim": 32,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
    "initializer_range": 0.02,
}


def keeping_processor() -> Any:
    """Of the classes that keep the image's ratio."""
    from transformers import SamImageProcessor

    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    small = {"mask_size": {"longest_edge": SIDE // 4}, "mask_pad_size": {"height": SIDE // 4, "width": SIDE // 4}}
    return SamImageProcessor(**sizes, **small)


def stretching_processor(name: str) -> Any:
    """Of the classes that stretch the image to a square."""
    import transformers

    small = {"height": SIDE // 4, "width": SIDE // 4}
    return getattr(transformers, name)(size={"height": SIDE, "width": SIDE}, mask_size=small)


def sam() -> tuple[Any, Any]:
    from transformers import SamConfig, SamModel

    vision = VIT | {"output_channels": 32, "num_pos_feats": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    return SamModel(config), keeping_processor()


def sam_hq() -> tuple[Any, Any]:
    from transformers import SamHQConfig, SamHQModel

    vision = VIT | {"output_channels": 32, "num_pos_feats": 16}
    decoder = DECODER | {"vit_dim": 32}
    config = SamHQConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=decoder)
    return SamHQModel(config), keeping_processor()


def hiera() -> dict[str, Any]:
    """Of SAM 2; its third stage's second block attends globally."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    return {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], **LEVELS}


def sam2() -> tuple[Any, Any]:
    from transformers import Sam2Config, Sam2Model

    config = Sam2Config(
        vision_config={"model_type": "sam2_vision_model", **hiera()},
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
    )
    return Sam2Model(config), stretching_processor("Sam2ImageProcessor")


def sam2_video() -> tuple[Any, Any]:
    """As the released checkpoints are: of the video model, in which the image model is."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = Sam2VideoConfig(
        vision_config={"model_type": "sam2_vision_model", **hiera()},
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
        image_size=SIDE,
        **MEMORY,
    )
    return Sam2VideoModel(config), stretching_processor("Sam2ImageProcessor")


def sam3_vision() -> dict[str, Any]:
    backbone = VIT | {"model_type": "sam3_vit_model", "intermediate_size": 64, "pretrain_image_size": 64}
    return {"model_type": "sam3_vision_model", "backbone_config": backbone, **LEVELS}


def sam3_tracker() -> tuple[Any, Any]:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config = Sam3TrackerConfig(
        vision_config=sam3_vision(),
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
    )
    return Sam3TrackerModel(config), stretching_processor("Sam3ImageProcessor")


def sam3_video() -> tuple[Any, Any]:
    """As the released checkpoint is: a detector and a tracker that share an encoder; the tracker takes points."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {
        "model_type": "clip_text_model",
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **narrow,
    }
    layers = {"num_layers": 1, **narrow}
    detector = {
        "model_type": "sam3",
        "vision_config": sam3_vision(),
        "text_config": text | {"projection_dim": 32},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": layers,
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": sam3_vision(),
        "prompt_encoder_config": PROMPTS,
        "mask_decoder_config": DECODER,
        "image_size": SIDE,
        **MEMORY,
    }
    config = Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=SIDE // 4)
    return Sam3VideoModel(config), stretching_processor("Sam3ImageProcessor")


def repvit() -> dict[str, Any]:
    """Of EdgeTAM."""
    layers = {"embed_dim": [8, 16, 24, 32], "depth": [1, 1, 1, 1]}
    outputs = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = {
        "model_type": "timm_wrapper",
        "architecture": "repvit_m1",
        "num_classes": 2,
        "model_args": outputs | layers,
    }
    vision = {"model_type": "edgetam_vision_model", "backbone_config": backbone, **LEVELS}
    return vision | {"backbone_channel_list": [32, 24, 16, 8]}


def edgetam() -> tuple[Any, Any]:
    from transformers import EdgeTamConfig, EdgeTamModel

    config = EdgeTamConfig(vision_config=repvit(), prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    return EdgeTamModel(config), stretching_processor("Sam2ImageProcessor")


def edgetam_video() -> tuple[Any, Any]:
    """As the released checkpoint is."""
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel

    config = EdgeTamVideoConfig(
        vision_config=repvit(),
        prompt_encoder_config=PROMPTS,
        mask_decoder_config=DECODER,
        image_size=SIDE,
        **MEMORY,
        memory_attention_mlp_hidden_size=32,
        memory_attention_rope_k_sizes=[4, 4],
        perceiver_resampler_hidden_size=16,
        perceiver_resampler_mlp_intermediate_size=32,
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        perceiver_resampler_attention_head_dim=16,
        perceiver_resampler_num_layers=1,
    )
    return EdgeTamVideoModel(config), stretching_processor("Sam2ImageProcessor")


SEGMENTERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make for make in (sam, sam_hq, sam2, sam2_video, sam3_tracker, sam3_video, edgetam, edgetam_video)
}


def tiny_segmenter(kind: str, directory: Path, *, seed: int = 0) -> Path:
    """A random checkpoint and its processor as a directory; returns it. Its masks depend on the prompt enough to tell
    prompts apart.
    """
    torch.manual_seed(seed)
    model, processor = SEGMENTERS[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "no_mask" not in name:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    # names as in the released files; the default writes "tracker_model." of a Sam3VideoModel twice
    model.save_pretrained(directory, save_original_format=False)
    processor.save_pretrained(directory)
    return directory
