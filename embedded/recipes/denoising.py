"""What a trained latent diffusion model paints and removes: sampling from noise, and one step of denoising."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from embedded.recipes.diffusion import text_ids
from embedded.recipes.fitting import half_precision

GUIDANCE = 5.0  # of 2, 3, 5, 7.5 and 10 the one with which CLIP found most of 200 asked categories


class LatentDiffusion(NamedTuple):
    """The parts of a latent diffusion model, of diffusers' and transformers' classes."""

    vae: Any
    unet: Any
    scheduler: Any
    tokenizer: Any
    text_encoder: Any


def sample(directory: Path, texts: Sequence[str], **options: Any) -> Float[Tensor, "b 3 H W"]:
    """Pictures that the latent diffusion model in `directory` paints for texts; the options are `paint`'s."""
    return paint(load_diffusion(directory), texts, **options)


@torch.no_grad()
def paint(
    model: LatentDiffusion,
    texts: Sequence[str],
    *,
    steps: int = 50,
    guidance: float = GUIDANCE,
    seed: int = 0,
    side: int | None = None,
    mixed: bool = False,
) -> Float[Tensor, "b 3 H W"]:
    """Pictures in 0..1 for texts, from pure noise (DDIM with classifier-free guidance).

    Args:
        side: cells of the latents a side; by default those of whole scenes.
        mixed: the U-Net computes in `half_precision`.
    """
    vae, unet, scheduler, tokenizer, text_encoder = model
    words = text_encoder(text_ids(tokenizer, [*texts, *[""] * len(texts)])).last_hidden_state
    side = side or unet.config.sample_size
    shape = (len(texts), unet.config.in_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        with half_precision(enabled=mixed):
            noise = unet(torch.cat([latents, latents]), time, encoder_hidden_states=words).sample.float()
        with_text, without = noise.chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), time, latents).prev_sample
    return decode(vae, latents)


@torch.no_grad()
def denoise(
    directory: Path, clean: Float[Tensor, "b c h w"], texts: Sequence[str], *, noise_step: int, seed: int = 0
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Scaled latents with the noise of `noise_step`, and the clean latents that one U-Net step predicts from them."""
    _, unet, scheduler, tokenizer, text_encoder = load_diffusion(directory)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noisy = scheduler.add_noise(clean, noise, torch.tensor([noise_step]))
    words = text_encoder(text_ids(tokenizer, texts)).last_hidden_state
    predicted = unet(noisy, noise_step, encoder_hidden_states=words).sample
    kept = scheduler.alphas_cumprod[noise_step]
    return noisy, (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()


@torch.no_grad()
def decode(vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """Pictures in 0..1 of scaled latents."""
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def load_diffusion(directory: Path) -> LatentDiffusion:
    """The parts of a model in diffusers' layout, in eval mode."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return LatentDiffusion(
        AutoencoderKL.from_pretrained(directory / "vae").eval(),
        UNet2DConditionModel.from_pretrained(directory / "unet").eval(),
        DDIMScheduler.from_pretrained(directory / "scheduler"),
        CLIPTokenizer.from_pretrained(directory / "tokenizer"),
        CLIPTextModel.from_pretrained(directory / "text_encoder").eval(),
    )
