"""Recipe of the embedded latent diffusion model: a text-conditioned U-Net of SD's shape over the VAE's latents.

The noise prediction of latent diffusion models, with SD-1.5's noise schedule; the text encoder is trained along. One
caption in ten is left out, so that the empty text means "any scene" (classifier-free guidance, and the conditioning of
DiffLMM's variants without an implicit captioner).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from embedded.recipes.fitting import Fit, fit, step_generator

log = logging.getLogger(__name__)
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class DiffusionRecipe:
    """Sizes in channels and tokens, steps in optimiser steps."""

    channels: tuple[int, ...] = (32, 64, 128, 128)
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 77
    vocabulary: int = 512
    dropped: float = 0.1  # share of captions that are left out
    average: float = 0.998  # decay of the weights' moving average, which is what is kept
    batch: int = 32
    steps: int = 1_500
    learning_rate: float = 1e-3
    seed: int = 0


def build_text_tokenizer(texts: Sequence[str], recipe: DiffusionRecipe) -> Any:
    """A `CLIPTokenizer` whose merges were learnt from the captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary - 2,
            end_of_word_suffix="</w>",
            special_tokens=[],
            initial_alphabet=[chr(code) for code in range(33, 127) if not chr(code).isupper()],
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    words = sorted(learned["vocab"])  # the learner's own numbers differ from run to run
    words += [letter + "</w>" for letter in words if len(letter) == 1 and letter + "</w>" not in learned["vocab"]]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=recipe.text_length)


def build_diffusion(recipe: DiffusionRecipe, tokenizer: Any, *, sample_size: int) -> tuple[Any, Any, Any]:
    """(U-Net, text encoder, scheduler) of the recipe's size with random weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from core.encoders.diffusion_config import SD15_SCHEDULER

    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=list(recipe.channels),
        norm_num_groups=16,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.heads,  # diffusers' name; SD-1.5 gives its number of heads here, too
        layers_per_block=1,
    )
    vocabulary = tokenizer.get_vocab()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.text_length,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )
    return unet, text_encoder, DDIMScheduler(**SD15_SCHEDULER)


def text_ids(tokenizer: Any, texts: Sequence[str]) -> Int[Tensor, "b s"]:
    """Token ids, padded to the tokenizer's length as SD does."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def train_diffusion(
    recipe: DiffusionRecipe, latents: Float[Tensor, "b c h w"], captions: Sequence[str], output: Path
) -> None:
    """Trains U-Net and text encoder on scaled latents and writes them, in diffusers' layout, to `output`.

    What is written is the moving average of the weights. The VAE stands in `output` already.
    """
    tokenizer = build_text_tokenizer(captions[:4000], recipe)
    unet, text_encoder, scheduler = build_diffusion(recipe, tokenizer, sample_size=latents.shape[-1])
    ids, empty = text_ids(tokenizer, captions), text_ids(tokenizer, [""])[0]
    learnt = nn.ModuleDict({"unet": unet, "text": text_encoder})
    average = deepcopy(learnt).requires_grad_(False)

    def loss(step: int) -> Tensor:
        generator = step_generator(recipe.seed, step)
        chosen = torch.randint(len(latents), (recipe.batch,), generator=generator)
        noise = torch.randn(recipe.batch, *latents.shape[1:], generator=generator)
        times = torch.randint(scheduler.config.num_train_timesteps, (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.dropped
        said = torch.where(dropped[:, None], empty, ids[chosen])
        noisy = scheduler.add_noise(latents[chosen].float(), noise, times)
        words = text_encoder(said).last_hidden_state
        return (unet(noisy, times, encoder_hidden_states=words).sample - noise).square().mean()

    def follow(step: int, value: float) -> None:
        decay = min(recipe.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), learnt.parameters(), strict=True):
                kept.lerp_(weight, 1 - decay)

    options = Fit(recipe.steps, recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    modules = {"learnt": learnt, "average": average}
    parameters = list(learnt.parameters())
    fit("U-Net", modules, loss, options, state=output / "state.tmp.pt", parameters=parameters, after=follow)
    average["unet"].eval().save_pretrained(output / "unet")
    average["text"].eval().save_pretrained(output / "text_encoder")
    scheduler.save_pretrained(output / "scheduler")
    tokenizer.save_pretrained(output / "tokenizer")


@torch.no_grad()
def sample(
    directory: Path, texts: Sequence[str], *, steps: int = 50, guidance: float = 3.0, seed: int = 0
) -> Float[Tensor, "b 3 H W"]:
    """Pictures in 0..1 that the latent diffusion model in `directory` paints for texts, from pure noise (DDIM)."""
    vae, unet, scheduler, tokenizer, text_encoder = load_diffusion(directory)
    words = text_encoder(text_ids(tokenizer, [*texts, *[""] * len(texts)])).last_hidden_state
    side = unet.config.sample_size
    shape = (len(texts), unet.config.in_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        noise = unet(torch.cat([latents, latents]), time, encoder_hidden_states=words).sample
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


def load_diffusion(directory: Path) -> tuple[Any, Any, Any, Any, Any]:
    """(VAE, U-Net, scheduler, tokenizer, text encoder) of a model in diffusers' layout, in eval mode."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return (
        AutoencoderKL.from_pretrained(directory / "vae").eval(),
        UNet2DConditionModel.from_pretrained(directory / "unet").eval(),
        DDIMScheduler.from_pretrained(directory / "scheduler"),
        CLIPTokenizer.from_pretrained(directory / "tokenizer"),
        CLIPTextModel.from_pretrained(directory / "text_encoder").eval(),
    )
