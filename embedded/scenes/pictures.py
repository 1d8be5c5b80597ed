"""Scenes as training tensors: rendered once, padded to a square as LLaVA does, kept as uint8."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from core.atomic import save_tensors
from core.images import pad_to_square
from embedded.scenes.captions import listing
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS, GROUNDS, TEXTURES, Scene, make_scene

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's normalisation, as in LLaVA's processor
STD = (0.26862954, 0.26130258, 0.27577711)
SHAPES = ((144, 192), (192, 192), (192, 144), (160, 192), (192, 160))  # (H, W) pixels of the training renderings
CUTOUT_SIDE = 64  # pixels, of the pictures of one object that DINO, the shape encoder and the U-Net share

PAIRS = tuple(f"{colour} {category}" for colour in COLOURS for category in CATEGORIES)
TAGS = (*PAIRS, *CATEGORIES, *COLOURS, *TEXTURES, *GROUNDS)


def square(image: Image.Image, side: int) -> Image.Image:
    """The image padded to a centred square with CLIP's mean colour, resized to `side` x `side` pixels (bicubic)."""
    padded = pad_to_square(image, tuple(int(255 * channel) for channel in MEAN))
    return padded.resize((side, side), Image.Resampling.BICUBIC)


def normalise(pixels: UInt8[Tensor, "b 3 H W"]) -> Tensor:
    """Float32 [b, 3, H, W]: CLIP's normalisation of 8-bit pixels."""
    return normalise_unit(pixels.float() / 255)


def normalise_unit(pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """CLIP's normalisation of pictures in 0..1."""
    mean, std = (torch.tensor(values, device=pictures.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pictures - mean) / std


def tag_numbers(scene: Scene) -> list[int]:
    """Positions in `TAGS` of the words that the scene's caption says: adjective-noun pairs, nouns, adjectives."""
    words = {f"{thing.colour} {thing.category}" for thing in scene.objects}
    words |= {thing.category for thing in scene.objects} | {thing.colour for thing in scene.objects}
    return sorted(TAGS.index(word) for word in words | {scene.texture, scene.ground})


def listing_of_one(tags: Sequence[int]) -> str:
    """The text of a picture of one object from its tag numbers: "a red star on a plain gray background"."""
    words = [TAGS[number] for number in tags]
    colour, category = next(word for word in words if word in PAIRS).split(" ")
    texture, ground = (next(word for word in words if word in kind) for kind in (TEXTURES, GROUNDS))
    return listing([(colour, category)], texture, ground)


def multi_hot(numbers: Sequence[Sequence[int]]) -> Tensor:
    """Float32 [b, TAGS]."""
    out = torch.zeros(len(numbers), len(TAGS))
    for row, tags in enumerate(numbers):
        out[row, list(tags)] = 1
    return out


def render(index: int, *, split: str, side: int, seed: int) -> tuple[np.ndarray, list[int], str, tuple]:
    """One scene as (uint8 [3, side, side], tag numbers, caption, questions)."""
    scene = make_scene(split, index, size=SHAPES[index % len(SHAPES)], seed=seed)
    pixels = np.asarray(square(scene.image, side)).transpose(2, 0, 1)
    return pixels, tag_numbers(scene), scene.caption, scene.questions


def render_one_object(
    index: int, *, side: int, seed: int, scales: tuple[float, float] = (0.45, 0.95)
) -> tuple[np.ndarray, list[int]]:
    """A small picture that one object fills to the shares `scales`, as (uint8 [3, side, side], tag numbers)."""
    scene = make_scene("train", index, size=(side, side), seed=seed, n_objects=1, scales=scales)
    return np.asarray(scene.image).transpose(2, 0, 1), tag_numbers(scene)


def render_cutout(index: int, *, side: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """A square cut from around a scene's only object, as (uint8 [3, side, side], tag numbers).

    The scene has twice the side, so that object and texture are as large in pixels as in whole training scenes of 160
    px where `side` is 64.
    """
    scene = make_scene("train", index, size=(2 * side, 2 * side), seed=seed, n_objects=1, scales=(0.24, 0.46))
    rng = np.random.default_rng([seed, index])
    left, top, width, height = scene.objects[0].box
    corner = [
        int(np.clip(rng.integers(min(start + extent - side, start), start + 1), 0, side))
        for start, extent in ((int(top), int(height)), (int(left), int(width)))
    ]
    pixels = np.asarray(scene.image)[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    return pixels.transpose(2, 0, 1), tag_numbers(scene)


def cutouts(number: int, *, side: int, seed: int, cache: Path, workers: int = 1) -> tuple[Tensor, list[list[int]]]:
    """`number` cutouts of `render_cutout`, kept in the file `cache`: pixels uint8 [b, 3, side, side], tag numbers."""
    pixels, (tags,) = _rendered(partial(render_cutout, side=side, seed=seed), number, ("tags",), cache, workers)
    return pixels, tags


def filled_pictures(
    number: int, *, side: int, seed: int, scales: tuple[float, float] = (0.7, 0.95), cache: Path, workers: int = 1
) -> tuple[Tensor, list[list[int]]]:
    """`number` pictures of `render_one_object`, kept in the file `cache`: pixels uint8 [b, 3, side, side], tags."""
    draw = partial(render_one_object, side=side, seed=seed, scales=scales)
    pixels, (tags,) = _rendered(draw, number, ("tags",), cache, workers)
    return pixels, tags


def training_scenes(number: int, *, side: int, seed: int, cache: Path, workers: int = 1) -> tuple[Tensor, list, list]:
    """The first `number` training scenes: pixels uint8 [b, 3, side, side], tag numbers, (caption, questions).

    Kept in the file `cache`, so that the vision encoder's and LLaVA's training draw them once.
    """
    draw = partial(_render_with_texts, side=side, seed=seed)
    pixels, (tags, texts) = _rendered(draw, number, ("tags", "texts"), cache, workers)
    return pixels, tags, texts


def _render_with_texts(index: int, *, side: int, seed: int) -> tuple[np.ndarray, list[int], tuple]:
    pixels, tags, caption, questions = render(index, split="train", side=side, seed=seed)
    return pixels, tags, (caption, questions)


def _rendered(
    draw: partial, number: int, names: tuple[str, ...], cache: Path, workers: int
) -> tuple[UInt8[Tensor, "b 3 s s"], list[list]]:
    """The pixels of `draw(0)` to `draw(number - 1)`, and a list for each of what it gives beside them; kept in a file.

    Args:
        names: of the lists in the file, which is drawn anew where it holds another number, side or seed.
    """
    key = {"number": number, **draw.keywords}
    if cache.is_file():
        stored = torch.load(cache, weights_only=True, mmap=True)
        if stored["key"] == key:
            return stored["pixels"], [stored[name] for name in names]
    rendered = render_many(draw, range(number), workers=workers)
    pixels = torch.stack([torch.from_numpy(item[0].copy()) for item in rendered])
    lists = [[item[place] for item in rendered] for place in range(1, len(names) + 1)]
    save_tensors({"key": key, "pixels": pixels, **dict(zip(names, lists, strict=True))}, cache)
    return pixels, lists


def render_many(task: partial, indices: range, *, workers: int = 1, title: str = "rendering") -> list:
    """`task(index)` for every index, in order, with a progress bar."""
    if workers < 2:
        return [task(index) for index in tqdm(indices, desc=title, mininterval=5)]
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(task, indices, chunksize=64), total=len(indices), desc=title, mininterval=5))
