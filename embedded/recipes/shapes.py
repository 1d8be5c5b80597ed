"""Recipe of the shape encoder: a small convolutional network that teaches itself shapes, without labels or captions.

Its cells learn to say the same of an object in two views and nothing like another object's (`dino_contrast`); the views
share the shape alone (`dino_objects`). It is what DINO's first steps are, with convolutions instead of attention: they
learn shapes from far fewer pictures, and a cell keeps to what lies around it, so that places are not forgotten. The
U-Net's features are aligned with it (`embedded.recipes.alignment`); no model that is shipped contains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from core.atomic import save_tensors
from embedded.recipes.dino_contrast import nt_xent, pool
from embedded.recipes.dino_objects import object_views, outline
from embedded.recipes.dino_views import standardise
from embedded.recipes.fitting import Fit, fit, step_generator
from embedded.scenes.pictures import CUTOUT_SIDE

CELL = 16  # pixels a side of what one cell stands for


@dataclass(frozen=True)
class ShapeRecipe:
    """Sizes in channels and pixels, steps in optimiser steps.

    Fields:
        cutouts, cutout_side, cutout_seed: of the pictures to learn from.
        channels: after each of the four convolutions that halve the picture.
        view: side of the views of one object.
        bottleneck: size of what is contrasted.
        painting_share, loosening_share: of the steps, until objects are painted wholly and stand anywhere in a view.
    """

    cutouts: int = 40_000
    cutout_side: int = CUTOUT_SIDE
    cutout_seed: int = 2  # with these three DINO's cutouts, drawn once
    channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    view: int = 48
    bottleneck: int = 64
    temperature: float = 0.15
    batch: int = 128
    steps: int = 1_200
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    painting_share: float = 0.3
    loosening_share: float = 0.5
    seed: int = 0


class ShapeEncoder(nn.Module):
    """Features of every cell of 16 x 16 pixels of a picture of any size, normalised as ImageNet's are."""

    def __init__(self, recipe: ShapeRecipe) -> None:
        super().__init__()
        widths = recipe.channels
        torch.manual_seed(recipe.seed)
        self.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1), _norm(widths[0]), nn.GELU())])
        for before, after in pairwise(widths):
            self.layers += [nn.Conv2d(before, after, 3, 2, 1), Residual(after)]
        self.layers.append(Residual(widths[-1]))

    def forward(self, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w c"]:
        """Features of the cells."""
        for layer in self.layers:
            pictures = layer(pictures)
        return pictures.permute(0, 2, 3, 1)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _norm(width), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1),
            _norm(width), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1),
        )  # fmt: skip

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The sum of both."""
        return hidden + self.inner(hidden)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 16), width)


def train_shapes(recipe: ShapeRecipe, pixels: UInt8[Tensor, "b 3 s s"], folder: Path) -> ShapeEncoder:
    """Trains on pictures of one object each and returns the encoder, kept in `folder`; a killed run goes on."""
    file = folder / "shapes.pt"
    folder.mkdir(parents=True, exist_ok=True)
    encoder = ShapeEncoder(recipe)
    if file.is_file():
        encoder.load_state_dict(torch.load(file, weights_only=True))
        return encoder.eval().requires_grad_(False)
    width = recipe.channels[-1]
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, recipe.bottleneck))
    objects = outline(pixels)

    def loss(step: int) -> Tensor:
        generator = step_generator(recipe.seed, step)
        views, matte = object_views(
            objects[torch.randint(len(objects), (recipe.batch,), generator=generator)],
            2,
            side=recipe.view,
            generator=generator,
            loose=min(1.0, step / (recipe.loosening_share * recipe.steps)),
            painted=min(1.0, 0.2 + 0.8 * step / (recipe.painting_share * recipe.steps)),
        )
        cells = encoder(standardise(views)).flatten(1, 2)
        return nt_xent(head(pool(cells, matte)), recipe.temperature)

    options = Fit(recipe.steps, recipe.learning_rate, weight_decay=recipe.weight_decay)
    fit("shapes", {"encoder": encoder, "head": head}, loss, options, state=folder / "shapes_state.tmp.pt")
    save_tensors(encoder.state_dict(), file)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def shape_cells(encoder: ShapeEncoder, pixels: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
    """The encoder's features of pictures, float16."""
    parts = [encoder(standardise(part.float() / 255)).half() for part in pixels.split(200)]
    return torch.cat(parts).permute(0, 3, 1, 2)
