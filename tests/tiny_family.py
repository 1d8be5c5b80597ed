"""Tiny random parts of the embedded family, in the sizes that its variants expect, and scenes to train on."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_diffusion import livelier, tiny_diffusion

from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.two_stages import TrainingData
from embedded.encoder_study.variants import Parts
from embedded.recipes.language_model import ReaderRecipe, build_reader
from embedded.recipes.tokenizer import train_tokenizer
from embedded.scenes.pictures import training_scenes

SCENES = 24


def tiny_parts(directory: Path) -> Parts:
    """CLIP, DINO, latent diffusion model and language model with random weights; 120 px in cells of 12."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    parts = Parts(*(directory / name for name in ("clip", "dino", "ldm", "reader")))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 120, "patch_size": 12}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        livelier(CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=32))).save_pretrained(parts.clip)
        livelier(Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2))).save_pretrained(parts.dino)
        tiny_diffusion(parts.diffusion)
        words = ["a red star on the left side of the image", "Describe the image in detail.", "USER: ASSISTANT:"]
        tokenizer = train_tokenizer(words, size=500)
        reader = build_reader(ReaderRecipe(width=16, layers=2, heads=2, mlp=32), tokenizer)
        reader.save_pretrained(parts.reader)
        tokenizer.save_pretrained(parts.reader)
    return parts


def tiny_data(directory: Path) -> TrainingData:
    """Two dozen scenes with their features; the last eight are held out."""
    pixels, tags, texts = training_scenes(SCENES, side=160, seed=0, cache=directory / "scenes.pt")
    cache = FeatureCache(directory / "features", tiny_parts(directory), pixels, chunk=8)
    return TrainingData(texts, tags, cache, held_out=range(16, 24))
