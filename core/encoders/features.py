"""One U-Net step as a feature extractor: seeded noise, and a U-Net that ends where its features are taken."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.errors import GroundingError


class StopHere(nn.Module):
    """Stands in for all up blocks after the wanted one: hands its input on.

    While it follows, the wanted block is not the U-Net's last one, so odd sizes are upsampled as in the full U-Net.
    """

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()

    def forward(self, hidden_states: Tensor, **unused: object) -> Tensor:
        return hidden_states


def keep_up_to(unet: nn.Module, up_block: int) -> nn.Module:
    """The same U-Net, cut in place after its `up_block`-th up block (counted from 1): it returns that block's output.

    Raises:
        GroundingError: there is no such block.

    Source: paper section 3.3 takes the second up block's output. Up to there it is the full U-Net bit for bit.
    """
    count = len(unet.up_blocks)
    if not 1 <= up_block <= count:
        raise GroundingError(f"up_block is counted from 1 to {count} in this U-Net, got {up_block}")
    if up_block < count:
        unet.up_blocks = nn.ModuleList([*unet.up_blocks[:up_block], StopHere()])
    unet.conv_norm_out, unet.conv_act, unet.conv_out = None, None, nn.Identity()
    return unet


def encoder_only(vae: nn.Module) -> nn.Module:
    """The same VAE without its decoder."""
    vae.decoder, vae.post_quant_conv = None, None
    return vae


def seeded_maps(shape: tuple[int, int, int], *, seed: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` times float32 CPU maps (noise, latent noise) of `shape` (c, h, w).

    They depend on seed, shape and place only: not on the batch, the device or how many are asked for.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(count):
        yield torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def fresh_maps(
    shape: tuple[int, int, int, int], *, count: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` times float32 maps (noise, latent noise) of `shape` (b, c, h, w) from the device's own random stream."""
    for _ in range(count):
        yield torch.randn(shape, device=device), torch.randn(shape, device=device)


def latents(
    vae: nn.Module, pixels: Float[Tensor, "b 3 H W"], sampling: Float[Tensor, "*b c h w"] | None
) -> Float[Tensor, "b c h w"]:
    """Scaled VAE latents of pixels in [-1, 1]: the posterior's mean, or with `sampling` noise a sample of it."""
    posterior = vae.encode(pixels).latent_dist
    value = posterior.mean
    if sampling is not None:
        value = value + posterior.std * sampling.to(value)
    return value * vae.config.scaling_factor


def noised(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "*b c h w"], step: int, scheduler
) -> Float[Tensor, "b c h w"]:
    """Latents at a noise step; every sample gets the noise map, or its own of as many as there are samples."""
    same = noise.to(clean).expand_as(clean)
    return scheduler.add_noise(clean, same, torch.tensor([step], device=clean.device))
