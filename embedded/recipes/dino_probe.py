"""What frozen patch features tell about a patch: a linear probe on held-out scenes, for measuring only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from core.errors import GroundingError
from core.images import pad_to_square
from embedded.recipes.dino_views import standardise
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.pictures import SHAPES, square
from embedded.scenes.scenes import COLOURS, Scene, make_scene

OFF, MIXED = -1, -2  # labels of cells beside all objects, and of cells that neither an object nor the ground fills


@dataclass(frozen=True)
class Probe:
    """Shares in 0..1 of held-out cells whose label the probe tells.

    `chance` is the share of the most frequent label among them, `untrained` what the same probe reaches on the features
    of a model of the same shape with random weights, `cells` how many there are.
    """

    accuracy: float
    untrained: float
    chance: float
    cells: int


def measure(model, *, scenes: int = 300, seed: int = 0, cover: float = 0.5) -> dict[str, Probe]:
    """How well a linear probe on the last hidden states tells an object's category and colour, and object from ground.

    The first two thirds of the scenes fit the probe, the rest measure it; the labels are the scenes' own masks.

    Args:
        model: a `Dinov2Model`, left as it is.
        scenes: of the `val` split.
        cover: an object is a cell's when it fills more than this share of it.

    Raises:
        GroundingError: too few scenes to fit and measure on.
    """
    if scenes < 6:
        raise GroundingError(f"{scenes} scenes are too few to fit and measure a probe; give 6 or more")
    grid = model.config.image_size // model.config.patch_size
    shown = [make_scene("val", index, size=SHAPES[index % len(SHAPES)], seed=seed) for index in range(scenes)]
    pixels = torch.stack([torch.from_numpy(_pixels(scene, model.config.image_size)) for scene in shown])
    labels = torch.stack([torch.from_numpy(cell_labels(scene, grid, cover=cover)) for scene in shown])
    torch.manual_seed(seed)
    features = [patch_features(one, pixels) for one in (model, type(model)(model.config).eval())]
    kinds = {"category": labels[..., 0], "colour": labels[..., 1], "object": figure(labels)}
    return {name: _compare(features, kind, 2 * scenes // 3) for name, kind in kinds.items()}


@torch.no_grad()
def patch_features(model, pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b k c"]:
    """The last hidden states of the patches, as `core.encoders.combined` takes them."""
    out = [
        model(standardise(part.to(model.device).float() / 255)).last_hidden_state[:, 1:] for part in pixels.split(64)
    ]
    return torch.cat(out).float().cpu()


def cell_labels(scene: Scene, grid: int, *, cover: float = 0.5) -> Int[np.ndarray, "k 2"]:
    """Each cell's category and colour, as positions in `CATEGORIES` and `COLOURS`; `OFF` or `MIXED` where none."""
    shares = np.stack([_coverage(thing.mask, grid) for thing in scene.objects])
    owner = shares.argmax(0)
    words = np.array([(CATEGORIES.index(o.category), list(COLOURS).index(o.colour)) for o in scene.objects])[owner]
    words[shares.max(0) <= cover] = MIXED
    words[shares.sum(0) < 0.02] = OFF
    return words


def figure(labels: Int[Tensor, "b k 2"]) -> Int[Tensor, "b k"]:
    """1 where an object fills the cell, 0 where none touches it, `MIXED` between."""
    first = labels[..., 0]
    return torch.where(first >= 0, 1, torch.where(first == OFF, 0, MIXED))


def _coverage(mask: np.ndarray, grid: int) -> Float[np.ndarray, " k"]:
    """The share of each cell of the padded square that the mask fills, in 0..1."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    padded = pad_to_square(picture, (0, 0, 0)).getchannel(0).convert("F")
    return np.asarray(padded.resize((grid, grid), Image.Resampling.BOX)).reshape(-1) / 255


def _pixels(scene: Scene, side: int) -> UInt8[np.ndarray, "3 s s"]:
    return np.asarray(square(scene.image, side)).transpose(2, 0, 1).copy()


def _compare(features: list[Tensor], labels: Int[Tensor, "b k"], fitted: int) -> Probe:
    known = labels >= 0
    learn, check = labels[:fitted][known[:fitted]], labels[fitted:][known[fitted:]]
    rights = [
        linear_accuracy(one[:fitted][known[:fitted]], learn, one[fitted:][known[fitted:]], check) for one in features
    ]
    return Probe(*rights, chance=float(check.bincount().max() / len(check)), cells=len(check))


def linear_accuracy(
    features: Float[Tensor, "b c"], labels: Int[Tensor, " b"], held: Float[Tensor, "d c"], truth: Int[Tensor, " d"]
) -> float:
    """The share of `held` that a softmax regression, fitted to `features` with a little weight decay, gets right."""
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    features, held = (features - mean) / std, (held - mean) / std
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return float((layer(held).argmax(-1) == truth).float().mean())
