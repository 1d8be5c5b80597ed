"""A grounded answer to look at: coloured phrases in the text, masks in the same colours on the image, maps beneath."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgb
from PIL import Image, ImageFilter

from analysis.conversation.drawn import DrawnObject
from analysis.conversation.objects import coloured_pieces, drawn_objects
from analysis.figures import picture_uri, shared_norm, tint
from core.attention import to_grid
from core.geometry import map_to_pixels
from core.pipeline import Grounding

STYLE = """<style>
.aas {font-family: system-ui, sans-serif; max-width: 62em; margin: 0 0 2em; color: #1a1a1a}
.aas .who {color: #666; font-size: .85em; margin: .6em 0 .1em} .aas .said {line-height: 1.75; margin: 0}
.aas mark {padding: .08em .28em; border-radius: .3em; cursor: pointer; color: inherit;
  box-decoration-break: clone; -webkit-box-decoration-break: clone}
.aas .picture {position: relative; display: inline-block; line-height: 0} .aas .picture img {max-width: 100%}
.aas .picture .layer {position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none}
.aas.one .layer {opacity: 0} .aas.one .layer.on {opacity: 1} .aas.one mark {opacity: .55} .aas.one mark.on {opacity: 1}
.aas .maps {display: flex; flex-wrap: wrap; gap: .6em; margin-top: .7em} .aas .maps figure {margin: 0; width: 9.5em}
.aas .maps img {width: 100%; display: block; border-bottom: .28em solid}
.aas figcaption {font-size: .8em; line-height: 1.3}
.aas .note {color: #666; font-size: .8em}
</style>"""

SCRIPT = """<script>
document.querySelectorAll('.aas').forEach(c => c.querySelectorAll('[data-object]').forEach(m => {
  const show = on => {c.classList.toggle('one', on); c.querySelectorAll('[data-object], .layer').forEach(e =>
    e.classList.toggle('on', on && e.dataset.layer === undefined ? e.dataset.object === m.dataset.object
      : on && e.dataset.layer === m.dataset.object))};
  m.onmouseenter = () => show(true); m.onmouseleave = () => show(false);
  m.onclick = () => show(!c.classList.contains('one'));
}));
</script>"""


def conversation_html(
    image: Image.Image, grounding: Grounding, prompt: str, *, long_side: int = 440, **choice: Any
) -> str:
    """One grounded answer as a self-contained HTML fragment: no file, script or style from elsewhere.

    Pointing at a phrase shows its mask alone.

    Args:
        image: the upright RGB picture of the grounding.
        grounding: the answer.
        prompt: the question that was asked.
        long_side: pixels of the picture on its long side; small pictures are at most doubled.
        choice: which objects are shown, see `analysis.conversation.objects.drawn_objects`.
    """
    objects = drawn_objects(grounding, **choice)
    scale = min(2.0, long_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    layers = "".join(
        f'<img class="layer" data-layer="{position}" alt="" src="{picture_uri(_mask_layer(each, size))}">'
        for position, each in enumerate(objects)
    )
    said = "".join(_piece(text, position, objects) for text, position in coloured_pieces(grounding, objects))
    return (
        f'{STYLE}<div class="aas"><div class="picture">'
        f'<img alt="the image" src="{picture_uri(image.resize(size))}">{layers}</div>'
        f'<p class="who">User</p><p class="said">{_escape(prompt)}</p>'
        f'<p class="who">{_escape(_model_name(grounding))}</p><p class="said">{said or "<i>(an empty answer)</i>"}</p>'
        f"{_attention_strip(image, grounding, objects)}</div>{SCRIPT}"
    )


def conversation_page(fragments: Iterable[str], title: str) -> str:
    """A whole HTML page around some `conversation_html` fragments."""
    body = "<hr>".join(fragments)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        f'<body style="margin: 2em; font-family: system-ui"><h1>{html.escape(title)}</h1>{body}</body></html>'
    )


def write_page(fragments: Iterable[str], path: str | Path, *, title: str) -> Path:
    """Write `conversation_page` to a file, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(conversation_page(fragments, title), encoding="utf-8")
    return path


def _piece(text: str, position: int | None, objects: Sequence[DrawnObject]) -> str:
    if position is None:
        return _escape(text)
    colour = objects[position].colour
    style = f"background: {tint(colour)}; box-shadow: inset 0 -.16em {colour}"
    return f'<mark data-object="{position}" style="{style}">{_escape(text)}</mark>'


def _escape(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _model_name(grounding: Grounding) -> str:
    name = grounding.generation.model.get("name_or_path", grounding.generation.model.get("name", "model"))
    said = "a given answer, replayed by " if grounding.generation.model.get("method") == "replay" else ""
    return f"{said}{Path(str(name)).name or name} + attend-and-segment"


def _mask_layer(drawn: DrawnObject, size: tuple[int, int]) -> Image.Image:
    mask = Image.fromarray(drawn.mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(5)))
    layer = np.zeros((*inner.shape, 4), dtype=np.uint8)
    layer[..., :3] = np.round(255 * np.asarray(to_rgb(drawn.colour)))
    layer[..., 3] = np.where(inner > 0, 118, np.where(np.asarray(mask) > 0, 255, 0))
    return Image.fromarray(layer)


def _attention_strip(image: Image.Image, grounding: Grounding, objects: Sequence[DrawnObject]) -> str:
    if not objects:
        return '<p class="note">No noun phrase of this answer was segmented.</p>'
    figures = []
    for picture, each in zip(attention_pictures(image, grounding, objects), objects, strict=True):
        phrase = _escape(grounding.phrases[each.phrases[0]].text)
        figures.append(
            f'<figure><img alt="attention map of {phrase}" style="border-color: {each.colour}" '
            f'src="{picture_uri(picture)}">'
            f'<figcaption>{phrase}<br><span class="note">SAM: IoU about {each.score:.2f}</span></figcaption></figure>'
        )
    note = "Attention maps of the phrases' central nouns on one colour scale; the dot is the point prompt."
    return f'<div class="maps">{"".join(figures)}</div><p class="note">{note}</p>'


def attention_pictures(
    image: Image.Image, grounding: Grounding, objects: Sequence[DrawnObject], *, long_side: int = 220
) -> list[Image.Image]:
    """Each object's map over the picture in grey, bright where it is high, on one scale from 0 to the highest value."""
    scale = min(1.0, long_side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = np.asarray(image.convert("L").resize(size), dtype=float)[..., None] / 255
    maps = [_map_at(grounding, each.phrases[0], size) for each in objects]
    norm = shared_norm(np.stack(maps).clip(0))
    pictures = []
    for values, each in zip(maps, objects, strict=True):
        strength = np.clip(norm(values), 0, 1)
        heat = matplotlib.colormaps["inferno"](strength)[..., :3]
        opacity = 0.15 + 0.65 * strength[..., None]
        blended = (1 - opacity) * (0.25 + 0.75 * grey) + opacity * heat
        x, y = each.point[0] * size[0] / image.width, each.point[1] * size[1] / image.height
        pictures.append(Image.fromarray(np.round(255 * _with_dot(blended, x, y)).clip(0, 255).astype(np.uint8)))
    return pictures


def _map_at(grounding: Grounding, number: int, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """The phrase's map over the whole image, sampled at `size` (width, height)."""
    view = grounding.view
    whole = map_to_pixels(to_grid(grounding.maps[number], view), view, size=grounding.image_size).numpy()
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BILINEAR))


def _with_dot(picture: np.ndarray, x: float, y: float, radius: float = 3.0) -> np.ndarray:
    rows, columns = np.indices(picture.shape[:2])
    distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
    ringed = np.where(distance[..., None] <= radius + 1.2, 0.0, picture)
    return np.where(distance[..., None] <= radius, 1.0, ringed)
