"""Scenes that training never drew, for the four challenges of Figure 4: unusual content, something absent, rare
concepts, a shifted domain.

- ordinary: scenes of the split as they are, to compare with.
- unusual: objects that cover each other far more than in training, one of them in a colour that was never drawn.
- rare: known things by glyphs that were never drawn, outlines such as U+2606 for a star.
- shifted: the ordinary scenes as a painting: dabs of few colours with dark edges, on paper.
- absent: an ordinary scene and the question for the colour of what is not there; `present` asks for what is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from tqdm import tqdm

from core.errors import GroundingError
from embedded.scenes.captions import DESCRIBE
from embedded.scenes.dataset import mask_fields, write_json, write_picture
from embedded.scenes.glyphs import CATEGORIES, Silhouette, cut_silhouette, silhouette
from embedded.scenes.scene_object import SceneObject
from embedded.scenes.scenes import COLOURS, Scene, draw_scene, make_scene

KINDS = ("ordinary", "unusual", "absent", "present", "rare", "shifted")
UNSEEN_COLOURS = {"pink": (250, 150, 190), "turquoise": (60, 205, 200), "lime": (170, 230, 40)}
UNSEEN_GLYPHS = {  # category -> (glyph, closing radius), as in `embedded.scenes.glyphs`
    "crown": ("♕", 6),
    "star": ("☆", 4),
    "heart": ("♡", 4),
    "rook": ("♖", 4),
    "knight": ("♘", 4),
    "pawn": ("♙", 4),
    "clover": ("♧", 4),
    "telephone": ("☏", 4),
    "flag": ("⚐", 4),
    "moon": ("☽", 4),
    "flower": ("❀", 4),
}


@dataclass(frozen=True)
class ChallengeScene:
    """One picture with what is asked about it.

    Attributes:
        kind: one of `KINDS`.
        scene: the picture and its objects; of `shifted` with the picture repainted.
        question: what the model is asked.
        asked: the category that a question for a colour names; "" for descriptions.
    """

    kind: str
    scene: Scene
    question: str = DESCRIBE
    asked: str = ""


def make_challenge(kind: str, index: int, *, split: str = "val", seed: int = 0) -> ChallengeScene:
    """The challenge number `index` of a kind, the same on every machine. Those of `ordinary`, `shifted`, `absent` and
    `present` show the scene of this number of the split.

    Raises:
        GroundingError: an unknown kind, or what `make_scene` refuses.
    """
    if kind not in KINDS:
        raise GroundingError(f"no challenge is called {kind!r}; choose one of {', '.join(KINDS)}")
    if kind in ("unusual", "rare"):
        return ChallengeScene(kind, _unusual(split, index, seed) if kind == "unusual" else _rare(split, index, seed))
    scene = make_scene(split, index, seed=seed)
    if kind == "shifted":
        return ChallengeScene(kind, replace(scene, image=paint(scene.image, seed=index)))
    if kind == "ordinary":
        return ChallengeScene(kind, scene)
    return _asked(kind, scene, np.random.default_rng([seed, index, KINDS.index(kind)]))


def _asked(kind: str, scene: Scene, rng: np.random.Generator) -> ChallengeScene:
    there = [each.category for each in scene.objects]
    options = [name for name in CATEGORIES if name not in there] if kind == "absent" else sorted(set(there))
    asked = str(rng.choice(options))
    return ChallengeScene(kind, scene, f"What color is the {asked}?", asked)


def _unusual(split: str, index: int, seed: int) -> Scene:
    """Two or three objects over each other."""
    rng = np.random.default_rng([seed, 11, index])
    names = [str(name) for name in rng.choice(CATEGORIES, int(rng.integers(2, 4)), replace=False)]
    colours = [str(name) for name in rng.choice(list(COLOURS), len(names), replace=False)]
    colours[-1] = str(rng.choice(list(UNSEEN_COLOURS)))
    middle, angle = rng.uniform(0.4, 0.6, 2), rng.uniform(0, 2 * np.pi)
    placed = []
    for number, (category, colour) in enumerate(zip(names, colours, strict=True)):
        turn = angle + 2 * np.pi * number / len(names)
        x, y = middle + 0.13 * np.array([np.cos(turn), np.sin(turn)])
        placed.append((category, colour, float(x), float(y), float(rng.uniform(0.4, 0.5)), float(rng.uniform(-20, 20))))
    return draw_scene(rng, placed, colours=COLOURS | UNSEEN_COLOURS)


def _rare(split: str, index: int, seed: int) -> Scene:
    """Ordinary places and colours, other glyphs."""
    rng = np.random.default_rng([seed, 12, index])
    number = int(rng.integers(1, 4))
    names = [str(name) for name in rng.choice(list(UNSEEN_GLYPHS), number, replace=False)]
    spots = rng.permutation([(0.25, 0.28), (0.72, 0.30), (0.27, 0.72), (0.74, 0.70)])[:number]
    placed = [
        (name, str(rng.choice(list(COLOURS))), *(float(v) for v in spot + rng.uniform(-0.04, 0.04, 2)),
         float(rng.uniform(0.32, 0.42)), float(rng.uniform(-20, 20)))
        for name, spot in zip(names, spots, strict=True)
    ]  # fmt: skip
    return draw_scene(rng, placed, shapes=unseen_silhouette)


def unseen_silhouette(category: str) -> Silhouette:
    """The shape of a category by a glyph that training never drew; its usual one where there is none."""
    return cut_silhouette(*UNSEEN_GLYPHS[category]) if category in UNSEEN_GLYPHS else silhouette(category)


def paint(image: Image.Image, *, seed: int = 0) -> Image.Image:
    """A picture as a painting: every neighbourhood in its most frequent colour, dark edges, grain of paper."""
    short = min(image.size)
    size = 2 * max(1, round(short / 90)) + 1
    dabs = image.quantize(24, method=Image.Quantize.MEDIANCUT).convert("RGB").filter(ImageFilter.ModeFilter(size))
    edges = ImageChops.invert(dabs.convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.GaussianBlur(1)))
    inked = ImageChops.multiply(dabs, Image.merge("RGB", (edges,) * 3))
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.normal(0, 9, (image.height // 3 + 1, image.width // 3 + 1)).astype(np.float32))
    grain = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC))[..., None]
    return Image.fromarray(np.clip(np.asarray(inked, np.float32) + grain, 0, 255).astype(np.uint8))


def write_challenges(
    directory: str | Path, *, n: int = 25, split: str = "val", seed: int = 0, progress: bool = False
) -> Path:
    """Write the first `n` challenges of every kind and return the folder.

    It holds `images/`, `instances.json` (COCO's instances format) and `challenges.json`: for each picture its `id` (as
    in the instances), `image`, `challenge`, `question`, and `asked`. Pictures that are there are not drawn again.

    Raises:
        GroundingError: as `make_scene`.
    """
    directory = Path(directory)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    images, annotations, items = [], [], []
    for kind in KINDS:
        for index in tqdm(range(n), desc=f"challenges ({kind})", disable=not progress, mininterval=2):
            made = make_challenge(kind, index, split=split, seed=seed)
            same = kind in ("absent", "present")  # the pictures of `ordinary`
            name = f"{'ordinary' if same else kind}_{index:04d}.png"
            write_picture(made.scene, directory / "images" / name)
            key = len(items)
            shape = {"width": made.scene.image.width, "height": made.scene.image.height}
            images.append({"id": key, "file_name": name, **shape})
            annotations += _annotations(made.scene.objects, key, first=len(annotations) + 1)
            items.append({"id": str(key), "image": f"images/{name}", "challenge": kind, "question": made.question,
                          "asked": made.asked})  # fmt: skip
    info = {"description": f"four challenges, split {split}, seed {seed}, {n} of each kind", "version": "1"}
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CATEGORIES)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_json(directory / "instances.json", content)
    write_json(directory / "challenges.json", items)
    return directory


def _annotations(objects: tuple[SceneObject, ...], image_id: int, *, first: int) -> list[dict]:
    visible = [thing for thing in objects if thing.mask.any()]
    return [
        {
            "id": first + number,
            "image_id": image_id,
            "category_id": CATEGORIES.index(thing.category) + 1,
            **mask_fields(thing),
            "attributes": {"colour": thing.colour},
        }
        for number, thing in enumerate(visible)
    ]
