"""Recipe of the embedded latent diffusion model's VAE: `AutoencoderKL` of SD's shape, trained on the scenes' pixels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from embedded.recipes.fitting import Fit, fit, step_generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Sizes in pixels and channels; most steps see crops, the last ones whole pictures."""

    channels: tuple[int, ...] = (16, 32, 48, 64)  # four levels, so latents are an eighth of the picture as in SD
    latent_channels: int = 4
    crop: int = 80
    batch: int = 16
    steps: int = 2_000
    whole_batch: int = 4
    whole_steps: int = 200
    learning_rate: float = 2e-3
    kl_weight: float = 1e-6  # per value, against the mean absolute error per pixel value
    seed: int = 0


def build_autoencoder(recipe: AutoencoderRecipe) -> Any:
    """An `AutoencoderKL` of the recipe's size with random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(recipe.seed)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(recipe.channels),
        up_block_types=["UpDecoderBlock2D"] * len(recipe.channels),
        block_out_channels=list(recipe.channels),
        norm_num_groups=8,
        latent_channels=recipe.latent_channels,
        layers_per_block=1,
    )


def train_autoencoder(recipe: AutoencoderRecipe, pixels: UInt8[Tensor, "b 3 H W"], output: Path) -> Any:
    """Trains the VAE, sets its `scaling_factor` to one over the latents' standard deviation, writes it to `output`."""
    vae = build_autoencoder(recipe)

    def loss(step: int) -> Tensor:
        generator = step_generator(recipe.seed, step)
        whole = step >= recipe.steps - recipe.whole_steps
        batch, side = (recipe.whole_batch, pixels.shape[-1]) if whole else (recipe.batch, recipe.crop)
        pictures = random_crops(pixels, batch, side, generator)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        painted = vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        return (painted - pictures).abs().mean() + recipe.kl_weight * divergence.float().sum() / len(pictures)

    options = Fit(recipe.steps, recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.99), mixed=True)
    fit("VAE", {"vae": vae}, loss, options, state=output.with_name("vae_state.tmp.pt"))
    vae.eval()
    deviation = encode_all(vae, pixels[:512]).std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(output)
    log.info("VAE: scaling factor %.4f", vae.config.scaling_factor)
    return vae


def random_crops(
    pixels: UInt8[Tensor, "b 3 H W"], number: int, side: int, generator: torch.Generator
) -> Float[Tensor, "n 3 side side"]:
    """Random squares of random pictures in [-1, 1], every second one mirrored."""
    chosen = torch.randint(len(pixels), (number,), generator=generator).tolist()
    room = [pixels.shape[axis] - side + 1 for axis in (2, 3)]
    rows, columns = (torch.randint(size, (number,), generator=generator).tolist() for size in room)
    crops = [pixels[i, :, y : y + side, x : x + side] for i, y, x in zip(chosen, rows, columns, strict=True)]
    crops[::2] = [crop.flip(-1) for crop in crops[::2]]
    return as_input(torch.stack(crops))


def as_input(pixels: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """8-bit pixels in [-1, 1], as the VAE takes them."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def encode_all(vae: Any, pixels: UInt8[Tensor, "b 3 H W"], *, batch: int = 16) -> Float[Tensor, "b c h w"]:
    """The posterior's means of all pictures, not scaled, float32."""
    return torch.cat(
        [vae.encode(as_input(pixels[i : i + batch])).latent_dist.mean for i in range(0, len(pixels), batch)]
    )


@torch.no_grad()
def reconstruction_error(vae: Any, pixels: UInt8[Tensor, "b 3 H W"]) -> dict[str, float]:
    """Mean absolute error in 8-bit levels and PSNR in dB of pictures through the VAE and back."""
    wanted = as_input(pixels)
    painted = torch.cat([vae.decode(vae.encode(one).latent_dist.mean).sample for one in wanted.split(16)]).clamp(-1, 1)
    squared = (painted - wanted).square().mean().item()
    return {
        "absolute_error": (painted - wanted).abs().mean().item() * 127.5,
        "psnr": float(10 * torch.log10(torch.tensor(4 / squared))),
    }
