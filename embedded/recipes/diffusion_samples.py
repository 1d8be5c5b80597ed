"""A sheet of pictures that shows whether the latent diffusion model denoises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from embedded.recipes.autoencoder import encode_all
from embedded.recipes.denoising import decode, denoise, load_diffusion, sample

NOISE_STEPS = (100, 300, 600)


def write_samples(
    directory: Path, pixels: UInt8[Tensor, "n 3 H W"], captions: Sequence[str], folder: Path, *, seed: int = 0
) -> dict[str, float]:
    """Writes `samples.png` into `folder`: some scenes that were not trained on, one column each.

    From above: the picture; through the VAE and back; for each of `NOISE_STEPS` the noised latents and what one U-Net
    step takes for clean, both decoded; a picture painted for the caption from nothing (DDIM, 50 steps).

    Returns:
        For each noise step the share of the latents' noise that one U-Net step removes: 1 is all of it, 0 nothing.
    """
    vae = load_diffusion(directory)[0]
    clean = encode_all(vae, pixels) * vae.config.scaling_factor
    rows = [pixels.float() / 255, decode(vae, clean)]
    removed = {}
    for step in NOISE_STEPS:
        noisy, predicted = denoise(directory, clean, captions, noise_step=step, seed=seed)
        removed[f"removed_at_{step}"] = 1 - float((predicted - clean).square().mean() / (noisy - clean).square().mean())
        rows += [decode(vae, noisy), decode(vae, predicted)]
    rows.append(sample(directory, captions, seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(folder / "samples.png")
    return removed


def sheet(rows: Sequence[Float[Tensor, "n 3 H W"]], *, gap: int = 4) -> Image.Image:
    """Pictures in 0..1, one row of them under the other, on white."""
    padded = [torch.nn.functional.pad(row, (gap, gap, gap, gap), value=1.0) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in padded]
    whole = torch.cat(lines, dim=1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.round(255 * whole.clip(0, 1)).astype(np.uint8))
