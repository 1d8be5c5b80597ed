"""Silhouettes of the scenes' objects, cut from the glyphs of the DejaVu Sans font that matplotlib ships."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.errors import GroundingError

# category -> (glyph, closing radius in 1/128 of the glyph's box: how far gaps are bridged before holes are filled)
GLYPHS = {
    "umbrella": ("☂", 4),
    "anchor": ("⚓", 4),
    "airplane": ("✈", 4),
    "crown": ("♛", 6),
    "star": ("★", 0),
    "heart": ("♥", 0),
    "rook": ("♜", 4),
    "knight": ("♞", 4),
    "pawn": ("♟", 2),
    "clover": ("♣", 2),
    "telephone": ("☎", 4),
    "envelope": ("✉", 2),
    "cloud": ("☁", 0),
    "flag": ("⚑", 3),
    "moon": ("☾", 3),
    "flower": ("✿", 3),
}
CATEGORIES = tuple(GLYPHS)
_MASTER = 160  # pixels; side of the square the silhouettes are drawn in


@dataclass(frozen=True)
class Silhouette:
    """One object's shape, cropped to its extent: `ink` (the glyph) and `filled` (solid), uint8 masks of one size."""

    ink: Image.Image
    filled: Image.Image


def font_path() -> Path:
    """DejaVuSans.ttf inside the installed matplotlib, found without importing it.

    Raises:
        GroundingError: matplotlib, or its font, is not installed.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise GroundingError("the scenes are drawn with the font that matplotlib ships; run `pip install matplotlib`")
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise GroundingError(f"matplotlib is installed without its fonts: {path} is missing; reinstall matplotlib")
    return path


@cache
def silhouette(category: str) -> Silhouette:
    """The solid shape of one category.

    Thin outlines make points miss: gaps narrower than the category's closing radius are bridged, and what the outline
    encloses belongs to the object.

    Raises:
        GroundingError: unknown category.
    """
    if category not in GLYPHS:
        raise GroundingError(f"no glyph for category {category!r}; known: {', '.join(CATEGORIES)}")
    return cut_silhouette(*GLYPHS[category])


@cache
def cut_silhouette(glyph: str, radius: int) -> Silhouette:
    """The solid shape of a glyph, its gaps bridged up to `radius`, in 1/128 of its box.

    Raises:
        GroundingError: the font has no such glyph.
    """
    canvas = Image.new("L", (2 * _MASTER, 2 * _MASTER), 0)
    font = ImageFont.truetype(str(font_path()), _MASTER)
    ImageDraw.Draw(canvas).text((_MASTER, _MASTER), glyph, font=font, fill=255, anchor="mm")
    box = canvas.getbbox()
    if box is None:
        raise GroundingError(f"the font draws nothing for {glyph!r}")
    ink = canvas.crop(box)
    scale = _MASTER / max(ink.size)
    ink = ink.resize((round(ink.width * scale), round(ink.height * scale)), Image.Resampling.LANCZOS)
    filled = _fill(np.asarray(ink) > 127, round(radius * _MASTER / 128))
    return Silhouette(ink=ink, filled=Image.fromarray(filled.astype(np.uint8) * 255))


def _fill(ink: np.ndarray, radius: int) -> np.ndarray:
    """Bool [H, W]: the ink closed by a disc of `radius` pixels, holes filled."""
    pad = radius + 2
    closed = np.pad(ink, pad)
    if radius:
        closed = ~_dilate(~_dilate(closed, radius), radius)
    outside = Image.fromarray(closed.astype(np.uint8) * 255).copy()  # fromarray may share read-only memory
    ImageDraw.floodfill(outside, (0, 0), 128)
    return (np.asarray(outside) != 128)[pad:-pad, pad:-pad]


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    out = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(-radius, radius + 1):
        reach = int((radius**2 - dy**2) ** 0.5)
        for dx in range(-reach, reach + 1):
            ys, xs = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
            ys0, xs0 = slice(max(0, -dy), height + min(0, -dy)), slice(max(0, -dx), width + min(0, -dx))
            out[ys, xs] |= mask[ys0, xs0]
    return out
