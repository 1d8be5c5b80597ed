"""Recipe of the embedded SAM: like the original it is supervised by masks, knows no classes, and answers prompts.

Its three outputs are, in this order, the painted part under the point, and twice the whole object.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from core.sam import SamConfig, build_sam, save_sam

log = logging.getLogger(__name__)

SHAPES = ((192, 256), (256, 256), (256, 192), (160, 256), (256, 176))  # (H, W) pixels of the training scenes


@dataclass(frozen=True)
class SamRecipe:
    """Steps in optimiser steps, `pictures` rendered once."""

    config: SamConfig = field(default_factory=SamConfig)
    pictures: int = 6_000
    encoder_steps: int = 800
    steps: int = 4_000
    batch: int = 8
    prompts: int = 4
    background: float = (
        0.06  # share of prompts on the background, in the second half; from the start it blocks learning
    )
    learning_rate: float = 1e-3
    seed: int = 0


def train(recipe: SamRecipe, output: Path):
    """Trains the embedded SAM from points, boxes and rough masks; writes it to `output` and returns it."""
    from embedded.recipes.fitting import warm_cosine
    from embedded.scenes.pictures import render_many

    torch.manual_seed(recipe.seed)
    sam = build_sam(**asdict(recipe.config)).train()
    pictures = render_many(partial(_render, seed=recipe.seed), range(recipe.pictures), title="rendering for SAM")
    _warm_encoder(sam, pictures, recipe)
    optimiser = torch.optim.AdamW(sam.parameters(), lr=recipe.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warm_cosine, steps=recipe.steps))
    rng = np.random.default_rng(recipe.seed)
    running = np.zeros(2)
    for step in range(recipe.steps):
        chosen = [pictures[number] for number in rng.integers(len(pictures), size=recipe.batch)]
        background = recipe.background if step > recipe.steps // 2 else 0.0
        loss, iou = _batch_loss(sam, chosen, recipe.prompts, background, rng)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running = 0.98 * running + 0.02 * np.array([loss.item(), iou]) if step else np.array([loss.item(), iou])
        if step % 100 == 99:
            log.info("SAM: step %d of %d, loss %.3f, IoU of the last mask %.3f", step + 1, recipe.steps, *running)
        if step % 1000 == 999:
            save_sam(sam, recipe.config, output)
    save_sam(sam, recipe.config, output)
    return sam.eval()


def _render(index: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [H, W, 3], int8 [H, W] object number, -1 on the background)."""
    from embedded.scenes.scenes import make_scene

    scene = make_scene("train", index, size=SHAPES[index % len(SHAPES)], seed=seed + 100)
    labels = np.full(scene.objects[0].mask.shape, -1, np.int8)
    for number, thing in enumerate(scene.objects):
        labels[thing.mask] = number
    return np.asarray(scene.image), labels


def _warm_encoder(sam, pictures: list, recipe: SamRecipe) -> None:
    """Starts the image encoder off alone: each cell tells which of its 16 parts are object and where its centre is.

    The decoder learns hardly anything while the features it reads say nothing; some hundred steps of this end that.
    """
    from embedded.recipes.fitting import warm_cosine

    encoder = sam.image_encoder
    side, stride = encoder.img_size, recipe.config.patch_size // 4
    head = nn.Conv2d(recipe.config.prompt_width, 16 + 2, 1)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warm_cosine, steps=recipe.encoder_steps))
    rng = np.random.default_rng(recipe.seed + 1)
    for step in range(recipe.encoder_steps):
        chosen = [pictures[number] for number in rng.integers(len(pictures), size=2 * recipe.batch)]
        out = head(encoder(_images(sam, chosen)))
        cover = torch.stack(
            [_low_resolution(torch.from_numpy(labels >= 0)[None], side, stride)[0] for _, labels in chosen]
        )
        target = F.pixel_unshuffle(cover[:, None], 4)
        offsets, weight = (
            torch.stack(part)
            for part in zip(*(_centres(labels, side, 4 * stride) for _, labels in chosen), strict=True)
        )
        loss = F.binary_cross_entropy_with_logits(out[:, :16], target) + (weight * (out[:, 16:] - offsets).abs()).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            log.info("SAM's encoder: step %d of %d, loss %.3f", step + 1, recipe.encoder_steps, loss.item())


def _images(sam, pictures: list) -> Float[Tensor, "b 3 s s"]:
    return torch.stack(
        [sam.preprocess(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)) for pixels, _ in pictures]
    )


def _centres(labels: np.ndarray, side: int, cell: int) -> tuple[Tensor, Tensor]:
    """Per cell: offset (y, x) in cells to its object's centre, float [2, h, w], and 1 where it has an object."""
    grid = side // cell
    offsets, weight = np.zeros((2, grid, grid), np.float32), np.zeros((1, grid, grid), np.float32)
    for row in range(min(grid, labels.shape[0] // cell)):
        for column in range(min(grid, labels.shape[1] // cell)):
            value = labels[row * cell + cell // 2, column * cell + cell // 2]
            if value >= 0:
                ys, xs = np.nonzero(labels == value)
                offsets[:, row, column] = ys.mean() / cell - row - 0.5, xs.mean() / cell - column - 0.5
                weight[0, row, column] = 1
    return torch.from_numpy(offsets), torch.from_numpy(weight)


def _batch_loss(sam, pictures: list, prompts: int, background: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Mean loss over pictures and prompts, and the mean IoU of the last mask on point prompts."""
    side = sam.image_encoder.img_size
    stride = side // (4 * sam.prompt_encoder.image_embedding_size[0])
    losses, ious = [], []
    for embedding, (pixels, labels) in zip(sam.image_encoder(_images(sam, pictures)), pictures, strict=True):
        points, parts, wholes, boxes = _prompts(pixels, labels, prompts, background, rng)
        targets = torch.stack(
            [_low_resolution(masks, side, stride) for masks in (wholes, parts, wholes, wholes)], dim=1
        )
        kind = rng.choice(["point", "box", "point and mask"], p=[0.7, 0.15, 0.15])
        rough = _rough(wholes, side, stride, rng) if kind == "point and mask" else None
        logits, scores = decode(
            sam,
            embedding[None],
            points=None if kind == "box" else points,
            boxes=boxes if kind == "box" else None,
            masks=rough,
        )
        loss, iou = mask_loss(logits, scores, targets)
        losses.append(loss)
        if kind == "point":
            ious.append(iou)
    return torch.stack(losses).mean(), float(np.mean(ious)) if ious else 0.0


def decode(sam, embedding: Tensor, *, points=None, boxes=None, masks=None) -> tuple[Tensor, Tensor]:
    """All four masks of the decoder for each prompt on one picture: (logits [p, 4, h, w], predicted IoU [p, 4])."""
    labelled = None if points is None else (points[:, None], torch.ones(len(points), 1))
    sparse, dense = sam.prompt_encoder(points=labelled, boxes=boxes, masks=masks)
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def mask_loss(
    logits: Float[Tensor, "p m h w"], scores: Float[Tensor, "p m"], targets: Float[Tensor, "p m h w"]
) -> tuple[Tensor, float]:
    """Focal and Dice loss, 20 to 1 as in SAM, and the predicted IoU's squared error; and the last mask's mean IoU."""
    chance = logits.sigmoid()
    surprise = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    focal = ((chance - targets).abs() ** 2 * surprise).mean((-2, -1))
    dice = 1 - (2 * (chance * targets).sum((-2, -1)) + 1) / (chance.sum((-2, -1)) + targets.sum((-2, -1)) + 1)
    with torch.no_grad():
        found, true = logits > 0, targets > 0.5
        iou = (found & true).sum((-2, -1)) / (found | true).sum((-2, -1)).clamp(min=1)
    loss = 20 * focal + dice + F.mse_loss(scores, iou.float(), reduction="none")
    return loss.mean(), float(iou[:, -1].mean())


def _prompts(pixels: np.ndarray, labels: np.ndarray, number: int, background: float, rng: np.random.Generator):
    """Points [p, 2] (x, y at pixel centres), part and whole masks bool [p, H, W], boxes [p, 4].

    A share `background` of the points stands beside all objects; their mask is the whole background.
    """
    shown = [value for value in np.unique(labels) if value >= 0 and (labels == value).sum() > 16]
    points, parts, wholes, boxes = [], [], [], []
    for _ in range(number):
        value = -1 if not shown or rng.random() < background else int(rng.choice(shown))
        whole = labels == value
        ys, xs = np.nonzero(whole)
        pick = int(rng.integers(len(xs)))
        alike = np.abs(pixels.astype(np.int16) - pixels[ys[pick], xs[pick]]).max(-1) < 48
        points.append((xs[pick] + 0.5, ys[pick] + 0.5))
        parts.append(whole & alike)
        wholes.append(whole)
        shift = rng.normal(0, 0.05, 4) * np.array([np.ptp(xs), np.ptp(ys)] * 2)
        boxes.append(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) + shift)
    stack = lambda masks: torch.from_numpy(np.stack(masks))  # noqa: E731
    return torch.tensor(points, dtype=torch.float32), stack(parts), stack(wholes), torch.tensor(np.stack(boxes)).float()


def _low_resolution(masks: Tensor, side: int, stride: int) -> Float[Tensor, "p h w"]:
    """Coverage in [0, 1] on the decoder's grid (cells of `stride` input pixels), zero where padded."""
    padded = F.pad(masks.float(), (0, side - masks.shape[-1], 0, side - masks.shape[-2]))
    return F.avg_pool2d(padded[:, None], stride)[:, 0]


def _rough(masks: Tensor, side: int, stride: int, rng: np.random.Generator) -> Float[Tensor, "p 1 h w"]:
    """A blurred, coarse version of the masks as logits, as a previous answer would be."""
    coverage = _low_resolution(masks, side, stride)[:, None]
    cell = int(rng.choice([4, 8]))
    coarse = F.interpolate(F.avg_pool2d(coverage, cell), scale_factor=cell, mode="bilinear")
    return 8 * (coarse - 0.5) + torch.from_numpy(rng.normal(0, 1.0, coarse.shape)).float()
