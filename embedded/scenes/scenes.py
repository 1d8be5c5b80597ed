"""Procedural scenes: solid glyph objects on a textured background, at any size, with exact instance masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from core.errors import GroundingError
from embedded.scenes.captions import answer_questions, describe
from embedded.scenes.glyphs import CATEGORIES, Silhouette, silhouette
from embedded.scenes.scene_object import SceneObject

COLOURS = {
    "red": (205, 30, 35),
    "orange": (245, 130, 15),
    "yellow": (250, 220, 40),
    "green": (30, 140, 55),
    "blue": (35, 75, 205),
    "purple": (130, 40, 160),
    "white": (250, 250, 250),
    "black": (15, 15, 18),
}
GROUNDS = {"gray": (150, 150, 152), "beige": (200, 184, 150), "brown": (140, 112, 88), "teal": (112, 160, 160)}
TEXTURES = ("plain", "striped", "dotted", "checkered", "grainy")
SPLITS = ("train", "val", "test")
Placed = tuple[str, str, float, float, float, float]
SIZES = ((160, 208), (256, 256), (240, 320), (320, 240), (336, 448), (448, 336), (480, 640))  # (H, W) pixels


@dataclass(frozen=True)
class Scene:
    """An RGB image, its objects from left to right, a description in LLaVA's manner, questions with answers."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    texture: str
    ground: str
    caption: str
    questions: tuple[tuple[str, str], ...]


def make_scene(
    split: str,
    index: int,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    n_objects: int | None = None,
    scales: tuple[float, float] | None = None,
) -> Scene:
    """The scene number `index` of a split; the same arguments give the same scene on every machine.

    Args:
        split: `train`, `val` or `test`; the splits draw from separate random streams.
        size: (H, W) in pixels; by default one of `SIZES`, drawn with the scene.
        n_objects: 1 to 4; by default drawn with the scene (mostly 2 or 3).
        scales: smallest and largest object, as a fraction of the short side; by default 0.26 to 0.34..0.56 by number.

    Raises:
        GroundingError: unknown split, negative index, or an image side under 32 pixels.
    """
    rng, (height, width), placed, texture, ground = _plan(split, index, size, seed, n_objects, scales)
    canvas = _background(rng, texture, ground, height, width)
    objects = _paint_objects(rng, canvas, placed, COLOURS, silhouette)
    canvas += rng.uniform(0, 5) * rng.standard_normal((height, width, 1), np.float32)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    caption = describe(rng, objects, texture, ground)
    return Scene(image, objects, texture, ground, caption, answer_questions(rng, objects, texture, ground))


def planned_objects(
    split: str, index: int, *, size: tuple[int, int], seed: int = 0
) -> tuple[tuple[SceneObject, ...], str, str]:
    """The objects of `make_scene` with the same arguments, its texture and ground, undrawn: masks and boxes are empty.

    Raises:
        GroundingError: as for `make_scene`.
    """
    _, _, placed, texture, ground = _plan(split, index, size, seed, None, None)
    objects = tuple(
        SceneObject(category, colour, np.zeros((0, 0), bool), (0.0,) * 4, (x, y), scale)
        for category, colour, x, y, scale, _ in placed
    )
    return objects, texture, ground


def _plan(split: str, index: int, size, seed: int, n_objects, scales) -> tuple:
    """What `make_scene` draws of a scene's random numbers before it paints: (rng, (H, W), placed, texture, ground)."""
    if split not in SPLITS or index < 0:
        raise GroundingError(f"scenes come as split in {SPLITS} and index >= 0; got {split!r}, {index}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    drawn_size = SIZES[rng.integers(len(SIZES))]
    height, width = size or drawn_size
    if min(height, width) < 32:
        raise GroundingError(f"a scene of {height}x{width} pixels is too small to draw; use at least 32x32")
    drawn_number = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.35, 0.15]))
    number = n_objects or drawn_number
    scales = scales or (0.26, {1: 0.56, 2: 0.48, 3: 0.42}.get(number, 0.38))
    placed = _place(rng, number, height, width, scales)
    texture, ground = str(rng.choice(TEXTURES)), str(rng.choice(list(GROUNDS)))
    return rng, (height, width), placed, texture, ground


def draw_scene(
    rng: np.random.Generator,
    placed: Sequence[Placed],
    *,
    size: tuple[int, int] | None = None,
    colours: Mapping[str, tuple[int, int, int]] = COLOURS,
    shapes: Callable[[str], Silhouette] = silhouette,
) -> Scene:
    """A scene of given objects on a drawn background, with nothing said about it.

    Args:
        rng: decides the background, the shades and, where `size` is not given, the size.
        placed: (category, colour, x, y, scale, angle) of each object from the farthest to the nearest; x and y are its
            centre as fractions of the image, `scale` its longer side as one of the short side, `angle` in degrees.
        size: (H, W) in pixels.
        colours, shapes: what the names stand for.
    """
    height, width = size or SIZES[rng.integers(len(SIZES))]
    texture, ground = str(rng.choice(TEXTURES)), str(rng.choice(list(GROUNDS)))
    canvas = _background(rng, texture, ground, height, width)
    objects = _paint_objects(rng, canvas, placed, colours, shapes)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return Scene(image, objects, texture, ground, "", ())


def _paint_objects(rng, canvas, placed, colours, shapes) -> tuple[SceneObject, ...]:
    """Paints all objects onto `canvas`, the last on top, and returns them with their visible pixels."""
    height, width = canvas.shape[:2]
    labels = np.full((height, width), -1, np.int16)
    for number, (category, colour, cx, cy, scale, angle) in enumerate(placed):
        centre, length = (cx * width, cy * height), scale * min(height, width)
        _draw(rng, canvas, labels, number, shapes(category), colours[colour], centre, length, angle)
    return tuple(
        _as_object(labels == number, category, colour, (cx, cy), scale)
        for number, (category, colour, cx, cy, scale, _) in enumerate(placed)
    )


def _place(rng: np.random.Generator, number: int, height: int, width: int, scales: tuple[float, float]) -> list[tuple]:
    """(category, colour, cx, cy, scale, angle) from left to right; neighbours overlap a little at most."""
    short = min(height, width)
    chosen: list[tuple] = []
    names: set[tuple[str, str]] = set()
    for _ in range(200):
        if len(chosen) == number:
            break
        category, colour = str(rng.choice(CATEGORIES)), str(rng.choice(list(COLOURS)))
        if (category, colour) in names or (category in {c for c, _ in names} and rng.random() < 0.9):
            continue
        scale = float(rng.uniform(*scales))
        reach = 0.5 * scale * short
        cx, cy = (float(rng.uniform(0.9 * reach, side - 0.9 * reach) / side) for side in (width, height))
        gaps = [
            max(abs(cx - x) * width, abs(cy - y) * height) - 0.5 * (scale + other) * short
            for _, _, x, y, other, _ in chosen
        ]
        if gaps and min(gaps) < -0.22 * scale * short * (rng.random() < 0.2):
            continue
        names.add((category, colour))
        chosen.append((category, colour, cx, cy, scale, float(rng.uniform(-20, 20))))
    return sorted(chosen, key=lambda item: item[2])


def _background(rng: np.random.Generator, texture: str, ground: str, height: int, width: int) -> np.ndarray:
    """Float32 [H, W, 3] in 0..255: a muted colour, shaded from corner to corner, with a texture whose period scales."""
    short = min(height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / short
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.08, 0.16)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    shade = rng.uniform(-0.10, 0.10) * x + rng.uniform(-0.10, 0.10) * y
    pattern = np.zeros_like(x)
    if texture == "striped":
        pattern = np.clip(4 * np.sin(2 * np.pi * along / period), -1, 1)
    elif texture == "checkered":
        pattern = np.clip(6 * np.sin(np.pi * along / period) * np.sin(np.pi * across / period), -1, 1)
    elif texture == "dotted":
        pattern = np.clip(8 * (np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period) - 1.1), -1, 1)
    elif texture == "grainy":
        coarse = rng.normal(0, 1.4, (max(2, int(height / short * 40)), max(2, int(width / short * 40)))).astype(
            np.float32
        )
        pattern = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    tone = 1 + shade + rng.uniform(0.06, 0.13) * pattern
    base = np.asarray(GROUNDS[ground], np.float32) + rng.uniform(-14, 14)
    return (base * tone[..., None]).astype(np.float32)


def _draw(rng, canvas, labels, number, shape, colour, centre, length, angle) -> None:
    """Paints one object onto `canvas` (float [H, W, 3]) and writes its number into `labels` (int [H, W])."""
    base = np.asarray(colour, np.float32) * rng.uniform(0.92, 1.0) + rng.uniform(0, 8)
    inside = 0.55 * base + 0.45 * (255.0 if base.mean() < 128 else 60.0)
    factor = length / max(shape.ink.size)
    new = (max(2, round(shape.ink.width * factor)), max(2, round(shape.ink.height * factor)))
    layers = []
    for layer in (shape.filled, shape.ink):
        small = layer.resize(new, Image.Resampling.BOX if factor < 0.6 else Image.Resampling.BILINEAR)
        layers.append(np.asarray(small.rotate(angle, Image.Resampling.BICUBIC, expand=True), np.float32) / 255)
    filled, ink = layers
    left, top = (round(c - s / 2) for c, s in zip(centre, filled.shape[::-1], strict=True))
    height, width = labels.shape
    ys, xs = (
        slice(max(0, top), min(height, top + filled.shape[0])),
        slice(max(0, left), min(width, left + filled.shape[1])),
    )
    part = (slice(ys.start - top, ys.stop - top), slice(xs.start - left, xs.stop - left))
    filled, ink = np.maximum(filled, ink)[part], ink[part]
    paint = ink[..., None] * base + (1 - ink[..., None]) * inside
    canvas[ys, xs] += filled[..., None] * (paint - canvas[ys, xs])
    labels[ys, xs][filled > 0.5] = number


def _as_object(mask: np.ndarray, category: str, colour: str, centre: tuple[float, float], scale: float) -> SceneObject:
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)) if len(xs) else (0.0,) * 4
    return SceneObject(category, colour, mask, box, centre, scale)
