"""Recipe of the embedded CLIP vision encoder: pre-trained from captions alone, then frozen.

The supervision is the caption's words as tags of the whole picture; no box, point or mask is seen. Every patch scores
every tag, a picture's score is the log-sum-exp over its patches (multiple-instance learning), so what a patch says is
about what stands there, and the features keep the place of things. It starts with small pictures of one object, put
anywhere on the encoder's grid of positions, and goes on with whole scenes. So far nothing asks a patch where it is, and
its features do not tell. Last, waves that do tell are added to the position embeddings, and what the captions say of
places ("the anchor is in the top left corner") becomes tags, too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from embedded.recipes.fitting import half_precision, warm_cosine
from embedded.recipes.waves import plane_waves
from embedded.scenes.captions import PLACES, told_places
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.pictures import TAGS, multi_hot, normalise, render_many, render_one_object, training_scenes

log = logging.getLogger(__name__)
PLACE_TAGS = tuple((category, place) for category in (*CATEGORIES, None) for place in PLACES)  # None: anything


@dataclass(frozen=True)
class VisionRecipe:
    """Sizes in pixels, steps in optimiser steps."""

    image_size: int = 120
    patch_size: int = 12
    width: int = 128
    layers: int = 4
    heads: int = 4
    window: int = 5  # cells a side of the one-object pictures
    small_pictures: int = 24_000
    small_steps: int = 2_500
    scenes: int = 24_000
    steps: int = 1_600
    placed_steps: int = 1_500  # with the captions' places among the tags
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


class TagHead(nn.Module):
    """Scores tags per patch; a picture's score is the log-sum-exp over its patches."""

    def __init__(self, width: int, tags: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, tags)
        nn.init.constant_(self.linear.bias, -8.0)

    def patch_scores(self, features: Float[Tensor, "b k c"]) -> Float[Tensor, "b k g"]:
        return self.linear(self.norm(features))

    def forward(self, features: Float[Tensor, "b k c"]) -> Float[Tensor, "b g"]:
        return torch.logsumexp(self.patch_scores(features).float(), dim=1)


def build_encoder(recipe: VisionRecipe):
    """A `CLIPVisionModel` of the recipe's size with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(recipe.seed)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
        )
    )


def encode_window(encoder, pixels: Tensor, row: int, column: int) -> Float[Tensor, "b k c"]:
    """Patch features of small pictures that stand at cell (row, column) of the encoder's grid of positions."""
    embeddings = encoder.embeddings
    patches = embeddings.patch_embedding(pixels)
    rows, columns = patches.shape[-2:]
    side = embeddings.image_size // embeddings.patch_size
    grid = torch.arange(side * side).view(side, side)[row : row + rows, column : column + columns]
    positions = torch.cat([torch.zeros(1, dtype=torch.long), 1 + grid.flatten()])
    tokens = torch.cat(
        [embeddings.class_embedding.expand(len(pixels), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1
    )
    hidden = encoder.pre_layrnorm(tokens + embeddings.position_embedding(positions))
    return encoder.encoder(inputs_embeds=hidden).last_hidden_state[:, 1:]


def pretrain(recipe: VisionRecipe, output: Path, *, workers: int = 1):
    """Trains the encoder and writes it to `output` (safetensors); returns (encoder, head).

    One-object pictures first, whole scenes after; AdamW, linear warm-up, cosine decay over each part.
    """
    encoder, head = build_encoder(recipe), TagHead(recipe.width, len(TAGS))
    side = recipe.window * recipe.patch_size
    small = render_many(
        partial(render_one_object, side=side, seed=recipe.seed + 1), range(recipe.small_pictures), workers=workers
    )
    pixels, tags = torch.stack([torch.from_numpy(item[0].copy()) for item in small]), [item[1] for item in small]
    _fit(encoder, head, pixels, multi_hot(tags), recipe, steps=recipe.small_steps, name="one object")
    _save(encoder, head, output)
    pixels, tags, texts = training_scenes(
        recipe.scenes, side=recipe.image_size, seed=recipe.seed, cache=output.parent / "scenes.pt", workers=workers
    )
    _fit(encoder, head, pixels, multi_hot(tags), recipe, steps=recipe.steps, name="scenes", mixed=True)
    _save(encoder, head, output)
    add_waves(encoder, normalise(pixels[:64]))
    head = TagHead(recipe.width, len(TAGS) + len(PLACE_TAGS))
    words = torch.cat([multi_hot(tags), place_tags([caption for caption, _ in texts])], dim=1)
    _fit(encoder, head, pixels, words, recipe, steps=recipe.placed_steps, name="places", mixed=True)
    _save(encoder, head, output)
    return encoder, head


@torch.no_grad()
def add_waves(encoder, pixels: Float[Tensor, "b 3 s s"], *, longest: float = 84.0, shortest: float = 4.0) -> None:
    """Adds sines and cosines of row and column to the position embeddings, as strong as the pictures' patch embeddings.

    Args:
        encoder: a `CLIPVisionModel`, changed in place.
        pixels: some pictures, normalised.
        longest, shortest: of the waves, in cells.
    """
    embeddings = encoder.embeddings
    strength = embeddings.patch_embedding(pixels).square().mean().sqrt()
    side, width = embeddings.image_size // embeddings.patch_size, encoder.config.hidden_size
    rates = 2 * math.pi / torch.logspace(math.log10(shortest), math.log10(longest), width // 4)
    embeddings.position_embedding.weight[1:] += 2**0.5 * strength * plane_waves(side, rates)


def place_tags(captions: Sequence[str]) -> Float[Tensor, "b p"]:
    """1 where a caption says that something, or a thing of a category, is at a place, in the order of `PLACE_TAGS`."""
    out = torch.zeros(len(captions), len(PLACE_TAGS))
    for row, caption in enumerate(captions):
        for category, place in told_places(caption):
            out[row, [PLACE_TAGS.index((name, place)) for name in (category, None)]] = 1
    return out


def _fit(
    encoder,
    head: TagHead,
    pixels: UInt8[Tensor, "b 3 s s"],
    tags: Float[Tensor, "b g"],
    recipe: VisionRecipe,
    *,
    steps: int,
    name: str,
    mixed: bool = False,
) -> None:
    """One part of the training; `mixed` computes in `half_precision`."""
    encoder.set_attn_implementation("eager")  # on a CPU faster in training at such short lengths
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warm_cosine, steps=steps))
    generator = torch.Generator().manual_seed(recipe.seed + steps)
    grid = recipe.image_size // recipe.patch_size
    room = grid - pixels.shape[-1] // recipe.patch_size
    running = 0.0
    for step in range(steps):
        chosen = torch.randint(len(pixels), (recipe.batch,), generator=generator)
        row, column = (int(torch.randint(room + 1, (), generator=generator)) for _ in range(2))
        with half_precision(enabled=mixed):
            features = encode_window(encoder, normalise(pixels[chosen]), row, column)
        scores = head(features.float())
        loss = nn.functional.binary_cross_entropy_with_logits(scores, tags[chosen], reduction="sum") / recipe.batch
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            log.info("vision, %s: step %d of %d, loss %.3f per picture", name, step + 1, steps, running)
    encoder.set_attn_implementation("sdpa")


def _save(encoder, head: TagHead, output: Path) -> None:
    from safetensors.torch import save_file

    encoder.save_pretrained(output)
    save_file(head.state_dict(), output / "tag_head.safetensors")
