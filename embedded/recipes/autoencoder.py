"""Recipe of the embedded latent diffusion model's VAE: `AutoencoderKL` of SD's shape, trained on the scenes' pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.atomic import save_tensors
from embedded.recipes.clip import encode_window
from embedded.recipes.fitting import Average, Fit, fit, half_precision, step_generator
from embedded.scenes.pictures import normalise_unit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Sizes in pixels and channels.

    Most steps see crops, the last `whole_steps` whole pictures; a second fit of whole pictures goes on from the
    averaged weights with a schedule of its own, and weighs the squared error higher; a third trains the decoder alone,
    with what the embedded CLIP makes of the picture as a further loss.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96)  # four levels, so latents are an eighth of the picture as in SD
    latent_channels: int = 16  # as SD-3 has; SD-1.5's four lose the glyphs
    crop: int = 64
    batch: int = 8
    steps: int = 7_000
    whole_batch: int = 2
    whole_steps: int = 600
    average: float = 0.998  # decay of the weights' moving average, which is what is kept
    learning_rate: float = 2e-3
    squared_weight: float = 5.0  # of the mean squared error, against the mean absolute one
    second_steps: int = 900
    second_learning_rate: float = 1e-3
    second_squared_weight: float = 20.0
    decoder_steps: int = 3_000
    decoder_learning_rate: float = 1e-3
    clip_weight: float = 0.1  # of the squared error of CLIP's features, as a share of their variance
    kl_weight: float = 1e-3  # of the mean divergence per latent value
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


def train_autoencoder(
    recipe: AutoencoderRecipe,
    pixels: UInt8[Tensor, "b 3 H W"],
    output: Path,
    *,
    clip: nn.Module | None = None,
    held_out: UInt8[Tensor, "n 3 H W"] | None = None,
    every: int = 500,
) -> Any:
    """Trains the VAE, sets its `scaling_factor` to one over the latents' standard deviation, writes it to `output`.

    What is written is the moving average of the weights; its error on `held_out` is logged all `every` steps.

    Args:
        clip: the frozen `CLIPVisionModel` whose features the decoder's last fit keeps.
    """
    state, watch = output.with_name("vae_state.tmp.pt"), partial(_log_error, held_out, every)
    crops = recipe.steps - recipe.whole_steps
    loss = partial(_loss, recipe, pixels, weight=recipe.squared_weight, crops=crops, seed=recipe.seed)
    again = partial(_loss, recipe, pixels, weight=recipe.second_squared_weight, crops=0, seed=recipe.seed + 1)
    fits = (
        (loss, recipe.steps, recipe.learning_rate),
        (again, recipe.second_steps, recipe.second_learning_rate),
        (partial(_decoder_loss, recipe, pixels, clip), recipe.decoder_steps, recipe.decoder_learning_rate),
    )
    vae = build_autoencoder(recipe)
    for number, (objective, steps, learning_rate) in enumerate(fits):
        done = output.with_name(f"vae_fit{number}.tmp.pt")
        if done.is_file():
            vae.load_state_dict(torch.load(done, weights_only=True))
            continue
        vae.requires_grad_(True).train()
        vae.encoder.requires_grad_(objective is not fits[-1][0])
        vae.quant_conv.requires_grad_(objective is not fits[-1][0])
        options = Fit(steps, learning_rate, weight_decay=0.0, betas=(0.9, 0.99), mixed=True)
        vae = _fit_average(vae, objective, options, recipe.average, state, watch)
        save_tensors(vae.state_dict(), done)
    deviation = encode_all(vae, pixels[:512]).std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(output)
    for done in output.parent.glob("vae_fit*.tmp.pt"):
        done.unlink()
    log.info("VAE: scaling factor %.4f", vae.config.scaling_factor)
    return vae


def _loss(
    recipe: AutoencoderRecipe, pixels: Tensor, vae: Any, step: int, *, weight: float, crops: int, seed: int
) -> Tensor:
    """The loss of one step: of crops in the first `crops` steps, of whole pictures after."""
    generator = step_generator(seed, step)
    batch, side = (recipe.batch, recipe.crop) if step < crops else (recipe.whole_batch, pixels.shape[-1])
    pictures = random_crops(pixels, batch, side, generator)
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    error = (vae.decode(posterior.mean + posterior.std * noise).sample - pictures).float()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
    return error.abs().mean() + weight * error.square().mean() + recipe.kl_weight * divergence.float().mean()


def _decoder_loss(recipe: AutoencoderRecipe, pixels: Tensor, clip: nn.Module | None, vae: Any, step: int) -> Tensor:
    """The loss of one step with the encoder as it is."""
    generator = step_generator(recipe.seed + 2, step)
    pictures = random_crops(pixels, recipe.whole_batch, pixels.shape[-1], generator)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
    painted = vae.decode(latents).sample.float()
    error = painted - pictures
    value = error.abs().mean() + recipe.second_squared_weight * error.square().mean()
    if clip is None:
        return value
    wanted, found = clip_features(clip, pictures), clip_features(clip, painted)
    return value + recipe.clip_weight * (found - wanted).square().mean() / wanted.var()


def clip_features(clip: nn.Module, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k c"]:
    """Patch features of pictures in [-1, 1], resized to what CLIP takes."""
    side = clip.config.image_size
    sized = interpolate(pictures / 2 + 0.5, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return encode_window(clip, normalise_unit(sized), 0, 0).float()


def _fit_average(
    vae: Any,
    loss: Callable[[Any, int], Tensor],
    options: Fit,
    decay: float,
    state: Path,
    watch: Callable[[Any, int], None],
) -> Any:
    """Fits the VAE; returns the moving average of its weights."""
    average = Average(vae, decay)

    def follow(step: int, value: float) -> None:
        average.follow(step)
        watch(average.kept, step)

    modules = {"vae": vae, "average": average.kept}
    learnt = [weight for weight in vae.parameters() if weight.requires_grad]
    fit("VAE", modules, partial(loss, vae), options, state=state, parameters=learnt, after=follow)
    return average.kept


def _log_error(held_out: Tensor | None, every: int, vae: Any, step: int) -> None:
    if held_out is not None and step % every == 0:
        log.info("VAE: step %d, held-out scenes %s", step, reconstruction_error(vae, held_out))


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
def encode_all(
    vae: Any, pixels: UInt8[Tensor, "b 3 H W"], *, batch: int = 16, mixed: bool = False
) -> Float[Tensor, "b c h w"]:
    """The posterior's means of all pictures, not scaled, float32; `mixed` computes in `half_precision`."""
    with half_precision(enabled=mixed):
        means = [vae.encode(as_input(pixels[i : i + batch])).latent_dist.mean for i in range(0, len(pixels), batch)]
    return torch.cat(means).float()


@torch.no_grad()
def reconstruct(vae: Any, pixels: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Pictures through the VAE and back, in [-1, 1]."""
    chunks = [vae.decode(vae.encode(one).latent_dist.mean).sample for one in as_input(pixels).split(16)]
    return torch.cat(chunks).clamp(-1, 1)


@torch.no_grad()
def reconstruction_error(vae: Any, pixels: UInt8[Tensor, "b 3 H W"]) -> dict[str, float]:
    """Mean absolute error in 8-bit levels and PSNR in dB of pictures through the VAE and back."""
    wanted, painted = as_input(pixels), reconstruct(vae, pixels)
    squared = (painted - wanted).square().mean().item()
    return {
        "absolute_error": (painted - wanted).abs().mean().item() * 127.5,
        "psnr": float(10 * torch.log10(torch.tensor(4 / squared))),
    }
