"""What the DINO recipe trains, and its settings: the encoder, its heads, and the sizes and steps of all parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from core.errors import GroundingError
from embedded.recipes.dino_contrast import wave_positions
from embedded.recipes.dino_heads import PrototypeHead
from embedded.scenes.pictures import CUTOUT_SIDE


@dataclass(frozen=True)
class DinoRecipe:
    """Sizes in pixels or channels, steps in optimiser steps, areas and shares as fractions of a picture."""

    image_size: int = 120
    patch_size: int = 12
    width: int = 128
    layers: int = 4
    heads: int = 4
    scene_side: int = 160
    scenes: int = 16_000
    small_crops: int = 2  # of half the large crops' side
    large_area: tuple[float, float] = (0.5, 1.0)
    small_area: tuple[float, float] = (0.15, 0.4)
    cutouts: int = 40_000
    cutout_side: int = CUTOUT_SIDE
    cutout_seed: int = 2
    object_size: int = 48  # side of the views of one object, alone
    object_steps: int = 3_500
    object_batch: int = 128
    mosaic_steps: int = 10_400  # after them, with four objects to a picture of full size
    contrast_temperature: float = 0.15
    painting_share: float = 0.4  # of `object_steps`, until objects are painted wholly
    loosening_share: float = 0.7  # of `object_steps`, until they stand anywhere in their view
    positions: float = 0.4  # amplitude of the waves that the position embeddings start from
    masked: tuple[float, float] = (0.2, 0.4)
    prototypes: int = 512
    hidden: int = 256
    bottleneck: int = 64
    student_temperature: float = 0.1
    teacher_temperature: float = 0.03
    momentum: float = 0.96  # of the teacher at the start; 1 at the end
    steps: int = 14_000  # all parts; the last see whole scenes, too
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.04
    save_every: int = 100  # steps between two training states on disk
    seed: int = 0


class Learner(nn.Module):
    """Student or teacher: the encoder and its two heads."""

    def __init__(self, recipe: DinoRecipe) -> None:
        super().__init__()
        self.encoder = build_encoder(recipe)
        head = partial(
            PrototypeHead,
            recipe.width,
            hidden=recipe.hidden,
            bottleneck=recipe.bottleneck,
            prototypes=recipe.prototypes,
        )
        self.picture_head, self.patch_head = head(), head()
        self.object_head = nn.Sequential(
            nn.Linear(recipe.width, recipe.hidden), nn.GELU(), nn.Linear(recipe.hidden, recipe.bottleneck)
        )


def build_encoder(recipe: DinoRecipe):
    """A `Dinov2Model` of the recipe's size with random weights.

    Raises:
        GroundingError: a size that is no whole number of cells.
    """
    from transformers import Dinov2Config, Dinov2Model

    if recipe.image_size % (2 * recipe.patch_size):
        raise GroundingError(
            f"image_size {recipe.image_size} is no multiple of twice the patch size {recipe.patch_size}, which crops "
            "and objects of half the side need; choose one"
        )
    if recipe.object_size % recipe.patch_size:
        raise GroundingError(
            f"object_size {recipe.object_size} is no multiple of the patch size {recipe.patch_size}; choose one"
        )
    torch.manual_seed(recipe.seed)
    config = Dinov2Config(
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        mlp_ratio=4,
        image_size=recipe.image_size,
        patch_size=recipe.patch_size,
        use_mask_token=True,
    )
    encoder = Dinov2Model(config)
    grid = recipe.image_size // recipe.patch_size
    with torch.no_grad():
        encoder.embeddings.position_embeddings[0, 1:] = wave_positions(recipe.width, grid, amplitude=recipe.positions)
    return encoder
