"""The latent diffusion model's learning curve while it is trained, and the account of it that is shipped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core.atomic import save_tensors
from embedded.encoder_study.diffusion_quality import (
    Judge,
    averaged_model,
    feature_table,
    noise_errors,
    painted,
    reconstructed,
    scaled,
)
from embedded.encoder_study.experiments import write_record
from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.probes import ProbeRecipe
from embedded.recipes.alignment import whiten
from embedded.recipes.autoencoder import encode_all
from embedded.recipes.denoising import GUIDANCE, LatentDiffusion, load_diffusion
from embedded.recipes.diffusion import DiffusionRecipe, Latents, pictures_seen, train_diffusion
from embedded.recipes.shapes import ShapeRecipe, shape_cells, train_shapes
from embedded.scenes.captions import listed
from embedded.scenes.pictures import TAGS, cutouts, filled_pictures, listing_of_one, render, render_cutout

log = logging.getLogger(__name__)
CURVE, QUALITY = "diffusion_curve.json", "diffusion_quality.json"  # beside the record of the variants' losses
ERROR_STEPS = (100, 300, 600)
PROBE = ProbeRecipe(scenes=1_000, steps=300)


@dataclass(frozen=True)
class MeasureRecipe:
    """How the latent diffusion model is measured while it is trained, cheaply, and at the end.

    Fields:
        every: optimiser steps between rows of the curve.
        curve_pictures, curve_steps: pictures painted for a row, as small as the cutouts, and their steps of DDIM.
        probe: of all up blocks' features with the empty text, in a row at noise step 300, at the end at all of them.
        pictures, steps: scenes through the VAE, and pictures painted of each kind at the end; their steps of DDIM.
        guidance: with which everything is painted.
    """

    every: int = 1_800
    curve_pictures: int = 64
    curve_steps: int = 25
    pictures: int = 200
    steps: int = 20
    guidance: float = GUIDANCE
    probe: ProbeRecipe = PROBE


@dataclass(frozen=True)
class LabelledLatents:
    """Scaled latents of whole training scenes and their tag numbers; the last `held_out` are not trained on."""

    latents: Float[Tensor, "n c h w"]
    tags: Sequence[Sequence[int]]
    held_out: int

    def split(self, number: int) -> tuple[tuple[Tensor, Tensor], tuple[Sequence, Sequence]]:
        """(latents, tags) of the first `number` scenes and of the held-out ones."""
        rest = len(self.latents) - self.held_out
        number = min(number, rest)
        return (self.latents[:number], self.latents[rest:]), (self.tags[:number], self.tags[rest:])


@dataclass(frozen=True)
class LearningCurve:
    """Measures the averaged weights now and then and keeps the rows in `file`; given to `train_diffusion`.

    Fields:
        cutouts, cutout_seed: the cutouts to measure on are drawn beyond the first so many of that seed.
    """

    file: Path
    recipe: DiffusionRecipe
    measures: MeasureRecipe
    vae: Any
    judge: Judge
    scenes: LabelledLatents
    cutouts: int
    cutout_seed: int

    def __call__(self, step: int, parts: Mapping[str, Any]) -> None:
        if step % self.measures.every and step != self.recipe.steps:
            return
        model = averaged_model(self.vae, parts)
        with torch.random.fork_rng(devices=[]):
            row = {"steps": step, "pictures": pictures_seen(self.recipe, step), **self._measure(model)}
        rows = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else []
        write_record([old for old in rows if old["steps"] < step] + [row], self.file)
        log.info("U-Net, curve: %s", json.dumps(row))

    def _measure(self, model: LatentDiffusion) -> dict[str, Any]:
        recipe, measures = self.recipe, self.measures
        side, first = recipe.cutout_side, self.cutouts
        small = [
            render_cutout(first + index, side=side, seed=self.cutout_seed) for index in range(measures.curve_pictures)
        ]
        texts, empty = [listing_of_one(tags) for _, tags in small], [""] * len(small)
        latents = scaled(self.vae, torch.from_numpy(np.stack([pixels for pixels, _ in small])))
        split, tags = self.scenes.split(measures.probe.scenes)
        scenes = split[1][:50].float()
        state = self.file.with_name("probe.tmp.pt")
        return {
            "error_cutouts": noise_errors(model, latents, texts, steps=ERROR_STEPS),
            "error_cutouts_without_text": noise_errors(model, latents, empty, steps=ERROR_STEPS),
            "error_scenes_without_text": noise_errors(model, scenes, [""] * len(scenes), steps=ERROR_STEPS),
            "painted_cutouts": painted(
                model,
                self.judge,
                measures.curve_pictures,
                [1],
                steps=measures.curve_steps,
                guidance=measures.guidance,
                side=side // 8,
            ),
            "probes": feature_table(model, split, tags, steps=[300], recipe=measures.probe, state=state),
        }


def quality(
    model: LatentDiffusion,
    judge: Judge,
    scenes: LabelledLatents,
    measures: MeasureRecipe,
    *,
    state: Path,
    cutout_cells: int = 8,
) -> dict[str, Any]:
    """Both bars of the latent diffusion model and the table of its features' probes."""
    number, side = measures.pictures, 8 * model.unet.config.sample_size
    shown = [render(index, split="val", side=side, seed=0) for index in range(number)]
    pixels: UInt8[Tensor, "n 3 H W"] = torch.from_numpy(np.stack([one[0] for one in shown]))
    options = {"steps": measures.steps, "guidance": measures.guidance, "mixed": True}
    found = {
        "vae": reconstructed(model.vae, judge, pixels, [one[1] for one in shown]),
        "pictures": number,
        "painted": {
            "one object, cutout": painted(model, judge, number, [1], side=cutout_cells, **options),
            "one object, scene": painted(model, judge, number, [1], **options),
            "two or three objects, scene": painted(model, judge, number, [2, 3], **options),
        },
    }
    log.info("latent diffusion model: %s", json.dumps(found))
    table = feature_table(model, *scenes.split(measures.probe.scenes), recipe=measures.probe, state=state)
    return {**found, "measures": asdict(measures), "probes": table}


def train_and_measure(
    recipe: DiffusionRecipe,
    measures: MeasureRecipe,
    work: Path,
    folder: Path,
    judge: Judge,
    scenes: tuple[FeatureCache, Sequence[Sequence[int]], Sequence[str]],
    *,
    held_out: int,
    record: Path,
    workers: int = 1,
) -> None:
    """Trains the U-Net of `folder`, where the VAE stands, and writes its learning curve and what it can in the end.

    Args:
        work: where pictures and latents are kept for a run that goes on.
        scenes: the cache of their latents, tag numbers and captions; the last `held_out` are for the probes only.
        record: folder of the two JSON files.
    """
    from diffusers import AutoencoderKL

    cache, tags, captions = scenes
    first = len(tags) - held_out
    number, side, shaped = min(recipe.scenes, first), recipe.cutout_side, ShapeRecipe()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    small, small_tags = cutouts(
        shaped.cutouts, side=shaped.cutout_side, seed=shaped.cutout_seed, cache=work / "cutouts.pt", workers=workers
    )
    shapes = train_shapes(shaped, small, work)
    small, small_tags = small[: recipe.cutouts], small_tags[: recipe.cutouts]
    targets = whiten(shape_cells(shapes, cache.pixels[:number]), shape_cells(shapes, small))
    latents = torch.cat([cache.latents(range(number)), cache.latents(range(first, len(tags)))])
    labelled = LabelledLatents(latents, [*tags[:number], *tags[first:]], held_out)
    sources = {
        **filled_sources(recipe, vae, work, workers=workers),
        "cutouts": Latents(
            kept_latents(vae, small, work / "cutout_latents.pt"),
            [listing_of_one(one) for one in small_tags],
            targets[1],
        ),
        "scenes": Latents(latents[:number], [listed(caption) for caption in captions[:number]], targets[0]),
    }
    measure = LearningCurve(record / CURVE, recipe, measures, vae, judge, labelled, shaped.cutouts, shaped.cutout_seed)
    train_diffusion(recipe, sources, folder, measure=measure)
    model, state = load_diffusion(folder), work / "probe.tmp.pt"
    write_record(quality(model, judge, labelled, measures, state=state, cutout_cells=side // 8), record / QUALITY)


def filled_sources(recipe: DiffusionRecipe, vae: Any, work: Path, *, workers: int = 1) -> dict[str, Latents]:
    """The pictures that an object fills: "plain", those on a plain ground, and "filled", all."""
    pixels, tags = filled_pictures(
        recipe.filled, side=recipe.cutout_side, seed=recipe.filled_seed, cache=work / "filled.pt", workers=workers
    )
    latents, texts = kept_latents(vae, pixels, work / "filled_latents.pt"), [listing_of_one(one) for one in tags]
    plain = [number for number, one in enumerate(tags) if TAGS.index("plain") in one]
    return {"plain": Latents(latents[plain], [texts[number] for number in plain]), "filled": Latents(latents, texts)}


def kept_latents(vae: Any, pixels: UInt8[Tensor, "n 3 H W"], file: Path) -> Float[Tensor, "n c h w"]:
    """Scaled latents in float16, computed in `half_precision` and kept in `file`."""
    if not file.is_file():
        chunks = [encode_all(vae, part, batch=64, mixed=True) for part in pixels.split(512)]
        save_tensors((torch.cat(chunks) * vae.config.scaling_factor).half(), file)
    return torch.load(file, weights_only=True)
