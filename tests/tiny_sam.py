"""Tiny random Segment Anything models of the real classes, without downloads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from core.masks import Segmenter
from core.sam import SamConfig, build_sam, save_sam

CONFIG = SamConfig(image_size=128, patch_size=16, width=32, depth=2, heads=2, window=4, prompt_width=32)


def tiny_sam(directory: Path, *, seed: int = 0) -> Path:
    """A random checkpoint as a directory (config.json and model.safetensors); returns it."""
    save_sam(random_sam(seed), CONFIG, directory)
    return directory


def random_sam(seed: int = 0):
    """A random model whose masks depend on the prompt enough to tell prompts apart."""
    torch.manual_seed(seed)
    sam = build_sam(
        image_size=CONFIG.image_size,
        patch_size=CONFIG.patch_size,
        width=CONFIG.width,
        depth=CONFIG.depth,
        heads=CONFIG.heads,
        window=CONFIG.window,
        prompt_width=CONFIG.prompt_width,
    )
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.5)
    return sam.eval()


@cache
def segmenter() -> Segmenter:
    """One tiny segmenter for all tests that only read from it."""
    return Segmenter(random_sam(), name="tiny")
