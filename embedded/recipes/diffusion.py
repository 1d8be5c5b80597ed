"""Recipe of the embedded latent diffusion model: a text-conditioned U-Net of SD's shape over the VAE's latents.

The noise prediction of latent diffusion models, with SD-1.5's noise schedule; the text encoder is trained along. What
it sees gets harder (`SOURCES`): small pictures that one object fills, on a plain ground and then on any, so that what a
word stands for is sharp on average; then squares cut from scenes, and whole scenes between them. Removing noise asks
for few shapes, so one up block's features are aligned with those of a small encoder that taught itself shapes
(`embedded.recipes.alignment`). The captions are the lists of objects that open the scenes' descriptions. Some are left
out, so that the empty text means "any scene" (classifier-free guidance, and the conditioning of DiffLMM's variants
without an implicit captioner).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from embedded.recipes.alignment import Alignment
from embedded.recipes.fitting import Average, Fit, fit, half_precision, step_generator
from embedded.scenes.pictures import CUTOUT_SIDE

log = logging.getLogger(__name__)
START, END = "<|startoftext|>", "<|endoftext|>"
SOURCES = ("plain", "filled", "cutouts", "scenes")  # of pictures, in the order in which they are first seen


@dataclass(frozen=True)
class DiffusionRecipe:
    """Sizes in channels and tokens, steps in optimiser steps.

    Fields:
        plain_steps, filled_steps, cutout_steps: how many steps see nothing but pictures that an object fills on a plain
            ground, then on any ground, then cutouts; after them cutouts and whole scenes take turns.
        aligned_block: the up block, from 1, that is aligned in cutouts and scenes from step `aligned_from` on.
        alignment: weight of the cosine with the targets, against the error of the noise.
    """

    channels: tuple[int, ...] = (48, 64, 96, 96)
    heads: int = 4
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 32
    vocabulary: int = 512
    dropped: float = 0.2  # share of captions that are left out
    average: float = 0.998  # decay of the weights' moving average, which is what is kept
    filled: int = 20_000
    cutouts: int = 24_000  # the first of those that the shape encoder sees
    cutout_side: int = CUTOUT_SIDE  # pixels, of all pictures that are no whole scenes
    filled_seed: int = 2  # not that of CLIP's pictures of one object
    cutout_batch: int = 64
    plain_steps: int = 700
    filled_steps: int = 900
    cutout_steps: int = 400
    scenes: int = 9_600
    batch: int = 8
    steps: int = 5_400
    aligned_block: int = 2
    aligned_from: int = 1_600
    alignment: float = 1.0
    learning_rate: float = 1e-3
    time_power: float = 0.7  # noise steps are drawn as this power of a uniform number: under 1, high ones more often
    signal_limits: tuple[float, float] = (5.0, 1.0)  # signal-to-noise ratio above which a noise step counts for less
    limited_from: int = 1_000  # step from which on the second limit holds, so that shapes count more than textures
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


def build_diffusion(
    recipe: DiffusionRecipe, tokenizer: Any, *, sample_size: int, latent_channels: int
) -> tuple[Any, Any, Any]:
    """(U-Net, text encoder, scheduler) of the recipe's size with random weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from core.encoders.diffusion_config import SD15_SCHEDULER

    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
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


class Latents(NamedTuple):
    """Pictures to train on: scaled latents, their captions, and what the aligned block's cells are to tell.

    Where there are no targets nothing is aligned.
    """

    latents: Float[Tensor, "n c h w"]
    captions: Sequence[str]
    targets: Float[Tensor, "n w i j"] | None = None


def train_diffusion(
    recipe: DiffusionRecipe,
    sources: Mapping[str, Latents],
    output: Path,
    *,
    measure: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> None:
    """Trains U-Net and text encoder on scaled latents and writes them, in diffusers' layout, to `output`.

    What is written is the moving average of the weights. The VAE stands in `output` already.

    Args:
        sources: of pictures, by the names of `SOURCES`.
        measure: called after every step with the number of finished steps and the averaged "unet" and "text_encoder",
            the "scheduler" and the "tokenizer".
    """
    tokenizer = build_text_tokenizer(
        [text for one in ("scenes", "cutouts") for text in sources[one].captions[:4000]], recipe
    )
    scenes = sources["scenes"]
    unet, text_encoder, scheduler = build_diffusion(
        recipe, tokenizer, sample_size=scenes.latents.shape[-1], latent_channels=scenes.latents.shape[1]
    )
    learnt = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = Average(learnt, recipe.average)
    modules = {"learnt": learnt, "average": average.kept}
    if scenes.targets is not None:
        modules["alignment"] = Alignment(unet, up_block=recipe.aligned_block, width=scenes.targets.shape[1])
    said_of = {name: text_ids(tokenizer, source.captions) for name, source in sources.items()}
    empty = text_ids(tokenizer, [""])[0]

    def loss(step: int) -> Tensor:
        name = source_of(recipe, step)
        (latents, _, targets), ids = sources[name], said_of[name]
        batch = batch_of(recipe, name)
        generator = step_generator(recipe.seed, step)
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        times = draw_times(recipe, scheduler, batch, generator)
        dropped = torch.rand(batch, generator=generator) < recipe.dropped
        said = torch.where(dropped[:, None], empty, ids[chosen])
        noisy = scheduler.add_noise(latents[chosen].float(), noise, times)
        with half_precision(enabled=name == "scenes"):  # slower than float32 on few cells
            words = text_encoder(said).last_hidden_state
            predicted = unet(noisy, times, encoder_hidden_states=words).sample
        fault = (predicted.float() - noise).square().mean((1, 2, 3))
        value = (fault * noise_weights(scheduler, recipe.signal_limits[step >= recipe.limited_from])[times]).mean()
        if targets is not None and step >= recipe.aligned_from:
            value = value + recipe.alignment * modules["alignment"](
                targets[chosen].float(), scheduler.alphas_cumprod[times]
            )
        return value

    def follow(step: int, value: float) -> None:
        average.follow(step)
        if measure is not None:
            measure(step, {**dict(average.kept.items()), "scheduler": scheduler, "tokenizer": tokenizer})

    options = Fit(recipe.steps, recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    parameters = [weight for name, part in modules.items() if name != "average" for weight in part.parameters()]
    fit("U-Net", modules, loss, options, state=output / "state.tmp.pt", parameters=parameters, after=follow)
    average.kept["unet"].save_pretrained(output / "unet")
    average.kept["text_encoder"].save_pretrained(output / "text_encoder")
    scheduler.save_pretrained(output / "scheduler")
    tokenizer.save_pretrained(output / "tokenizer")


def source_of(recipe: DiffusionRecipe, step: int) -> str:
    """Which of `SOURCES` a step sees."""
    end = 0
    for name, steps in zip(SOURCES, (recipe.plain_steps, recipe.filled_steps, recipe.cutout_steps), strict=False):
        end += steps
        if step < end:
            return name
    return ("scenes", "cutouts")[(step - end) % 2]


def batch_of(recipe: DiffusionRecipe, source: str) -> int:
    """How many pictures of a source a step sees."""
    return recipe.batch if source == "scenes" else recipe.cutout_batch


def pictures_seen(recipe: DiffusionRecipe, steps: int) -> dict[str, int]:
    """How many pictures of every source were drawn in the first steps."""
    found = Counter(source_of(recipe, step) for step in range(steps))
    return {name: found[name] * batch_of(recipe, name) for name in SOURCES}


def draw_times(recipe: DiffusionRecipe, scheduler: Any, number: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Noise steps to train at."""
    count = scheduler.config.num_train_timesteps
    return (count * torch.rand(number, generator=generator) ** recipe.time_power).long().clamp(max=count - 1)


def noise_weights(scheduler: Any, limit: float) -> Float[Tensor, " t"]:
    """Weight of the squared error of the noise at every noise step: min(SNR, limit) / SNR.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, ICCV 2023, section 3.4.
    """
    kept = scheduler.alphas_cumprod
    ratio = kept / (1 - kept)
    return ratio.clamp(max=limit) / ratio
