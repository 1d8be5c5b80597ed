"""Tiny random parts of the visual encoders in their published layouts: a diffusion model, CLIP, DINOv2, ConvNeXt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [4, 4, 8, 8],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "scaling_factor": 0.5,
}
UNET = {
    "block_out_channels": [8, 16, 32, 32],
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "layers_per_block": 1,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 8,
}
TEXT = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny_diffusion(directory: Path, *, seed: int = 0) -> Path:
    """A latent diffusion model as diffusers lays it out: vae, unet, scheduler, tokenizer, text_encoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(97 + i) for i in range(26)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    text = CLIPTextConfig(
        **TEXT, vocab_size=len(words), max_position_embeddings=7, bos_token_id=52, eos_token_id=53, pad_token_id=53
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoencoderKL(**VAE).save_pretrained(directory / "vae")
        UNet2DConditionModel(**UNET).save_pretrained(directory / "unet")
        livelier(CLIPTextModel(text)).save_pretrained(directory / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(directory / "scheduler")
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7).save_pretrained(directory / "tokenizer")
    return directory


def tiny_tower(directory: Path, kind: str = "clip", *, seed: int = 1) -> Path:
    """A vision tower: "clip" (56 px, cells of 14), "dinov2" (42 px, cells of 14) or "convnext" (cells of 32)."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        ConvNextConfig,
        ConvNextModel,
        Dinov2Config,
        Dinov2Model,
    )

    configs = {
        "clip": lambda: CLIPVisionConfig(**CLIP),
        "dinov2": lambda: Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
        ),
        "convnext": lambda: ConvNextConfig(hidden_sizes=[4, 8, 12, 20], depths=[1, 1, 1, 1]),
    }
    classes = {"clip": CLIPVisionModel, "dinov2": Dinov2Model, "convnext": ConvNextModel}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        livelier(classes[kind](configs[kind]())).save_pretrained(directory)
    return directory


def livelier(model: Any) -> Any:
    """The model with weights large enough that what differs in the input differs in the output."""
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.2)
    return model.eval()
