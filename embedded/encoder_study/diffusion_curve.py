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
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor

from core.atomic import save_tensors, write_atomically
from embedded.encoder_study.diffusion_quality import (
    Judge,
    averaged_model,
    feature_table,
    noise_errors,
    painted,
    reconstructed,
    scaled,
)
from embedded.encoder_study.probes import ProbeRecipe
from embedded.recipes.autoencoder import encode_all
from embedded.recipes.denoising import LatentDiffusion, load_diffusion
from embedded.recipes.diffusion import DiffusionRecipe, Latents, pictures_seen, train_diffusion
from embedded.scenes.captions import listed
from embedded.scenes.pictures import cutouts, listing_of_one, render, render_cutout

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parents[1] / "recorded"
CURVE, QUALITY = FOLDER / "diffusion_curve.json", FOLDER / "diffusion_quality.json"
ERROR_STEPS = (100, 300, 600)
CURVE_PROBE, ACCOUNT_PROBE = ProbeRecipe(scenes=1_000, steps=300), ProbeRecipe(scenes=1_500, steps=600)


@dataclass(frozen=True)
class LabelledLatents:
    """Scaled latents of whole training scenes and their tag numbers; the last `held_out` are not trained on."""

    latents: Float[Tensor, "n c h w"]
    tags: Sequence[Sequence[int]]
    held_out: int

    def split(self, number: int) -> tuple[tuple[Tensor, Tensor], tuple[Sequence, Sequence]]:
        """(latents, tags) of the first `number` scenes and of the held-out ones."""
        rest = len(self.latents) - self.held_out
        return (self.latents[:number], self.latents[rest:]), (self.tags[:number], self.tags[rest:])


@dataclass(frozen=True)
class LearningCurve:
    """Measures the averaged weights all `every` steps and keeps the rows in `file`; given to `train_diffusion`.

    Fields:
        number: pictures painted for a row, as small as the cutouts, with 25 steps of DDIM.
        probe: of a row's features (noise step 300, all up blocks, empty text).
    """

    file: Path
    recipe: DiffusionRecipe
    vae: Any
    judge: Judge
    scenes: LabelledLatents
    every: int = 850
    number: int = 64
    probe: ProbeRecipe = CURVE_PROBE

    def __call__(self, step: int, parts: Mapping[str, Any]) -> None:
        if step % self.every and step != self.recipe.steps:
            return
        model = averaged_model(self.vae, parts)
        with torch.random.fork_rng(devices=[]):
            row = {"steps": step, "pictures": pictures_seen(self.recipe, step), **self._measure(model)}
        rows = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else []
        rows = [old for old in rows if old["steps"] < step] + [row]
        write_atomically(self.file, (json.dumps(rows, indent=1) + "\n").encode())
        log.info("U-Net, curve: %s", json.dumps(row))

    def _measure(self, model: LatentDiffusion) -> dict[str, Any]:
        recipe, latents_side = self.recipe, self.recipe.cutout_side // 8
        small = [render_cutout(recipe.cutouts + index, side=recipe.cutout_side, seed=cutout_seed(recipe))
                 for index in range(self.number)]  # fmt: skip
        texts = [listing_of_one(tags) for _, tags in small]
        latents = scaled(self.vae, torch.from_numpy(np.stack([pixels for pixels, _ in small])))
        (train, held_out), tags = self.scenes.split(self.probe.scenes)
        probes = feature_table(model, (train, held_out), tags, steps=[300], recipe=self.probe, state=self._state)
        return {
            "error_cutouts": noise_errors(model, latents, texts, steps=ERROR_STEPS),
            "error_cutouts_without_text": noise_errors(model, latents, [""] * len(texts), steps=ERROR_STEPS),
            "error_scenes_without_text": noise_errors(model, held_out[:50].float(), [""] * len(held_out[:50]), steps=ERROR_STEPS),  # noqa: E501
            "painted_cutouts": painted(model, self.judge, self.number, [1], steps=25, side=latents_side),
            "probes": probes,
        }  # fmt: skip

    @property
    def _state(self) -> Path:
        return self.file.with_name("probe_state.tmp.pt")


def cutout_seed(recipe: DiffusionRecipe) -> int:
    """Seed of the cutouts' scenes: not those of CLIP's pictures of one object."""
    return recipe.seed + 2


def quality(
    model: LatentDiffusion,
    judge: Judge,
    scenes: LabelledLatents,
    *,
    state: Path,
    pictures: int = 200,
    probe: ProbeRecipe = ACCOUNT_PROBE,
    steps: int = 20,
    cutout_cells: int = 8,
) -> dict[str, Any]:
    """Both bars of the latent diffusion model and the table of its features' probes.

    Args:
        pictures: scenes through the VAE, and pictures painted of each kind.
        probe: of every block's features at every noise step.
    """
    shown = [render(index, split="val", side=8 * model.unet.config.sample_size, seed=0) for index in range(pictures)]
    pixels: UInt8[Tensor, "n 3 H W"] = torch.from_numpy(np.stack([one[0] for one in shown]))
    latents, tags = scenes.split(probe.scenes)
    found = {
        "vae": reconstructed(model.vae, judge, pixels, [one[1] for one in shown]),
        "painted": {
            "one object, cutout": painted(model, judge, pictures, [1], steps=steps, side=cutout_cells),
            "one object, scene": painted(model, judge, pictures, [1], steps=steps, mixed=True),
            "two or three objects, scene": painted(model, judge, pictures, [2, 3], steps=steps, mixed=True),
        },
    }
    log.info("latent diffusion model: %s", json.dumps(found))
    table = feature_table(model, latents, tags, recipe=probe, state=state)
    return {**found, "probe_recipe": asdict(probe), "probes": table}


def train_and_measure(
    recipe: DiffusionRecipe,
    work: Path,
    folder: Path,
    judge: Judge,
    scenes: tuple[UInt8[Tensor, "n 3 H W"], Sequence[Sequence[int]], Sequence[str]],
    *,
    workers: int = 1,
    held_out: int = 500,
    curve: Path = CURVE,
    account: Path = QUALITY,
    pictures: int = 200,
    probe: ProbeRecipe | None = None,
    **options: Any,
) -> None:
    """Trains the U-Net of `folder`, where the VAE stands, and writes its learning curve and what it can in the end.

    Args:
        scenes: pixels, tag numbers and captions; the last `held_out` are for the probes only.
        pictures, probe, options: of `quality` and `LearningCurve`.
        work: where pictures and latents are kept for a run that goes on.
    """
    pixels, tags, captions = scenes
    number, side = min(recipe.scenes, len(pixels) - held_out), recipe.cutout_side
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    small, small_tags = cutouts(
        recipe.cutouts, side=side, seed=cutout_seed(recipe), cache=work / "cutouts.pt", workers=workers
    )
    shown = torch.cat([pixels[:number], pixels[len(pixels) - held_out :]])
    latents = kept_latents(vae, shown, work / "scene_latents.pt")
    labelled = LabelledLatents(latents, [*tags[:number], *tags[len(tags) - held_out :]], held_out)
    train_diffusion(
        recipe,
        Latents(latents[:number], [listed(caption) for caption in captions[:number]]),
        Latents(kept_latents(vae, small, work / "cutout_latents.pt"), [listing_of_one(one) for one in small_tags]),
        folder,
        measure=LearningCurve(curve, recipe, vae, judge, labelled, probe=probe or CURVE_PROBE, **options),
    )
    model, state = load_diffusion(folder), work / "probe.tmp.pt"
    found = quality(
        model, judge, labelled, state=state, pictures=pictures, probe=probe or ACCOUNT_PROBE, cutout_cells=side // 8
    )
    write_atomically(account, (json.dumps(found, indent=1) + "\n").encode())


def kept_latents(vae: Any, pixels: UInt8[Tensor, "n 3 H W"], file: Path) -> Float[Tensor, "n c h w"]:
    """Scaled latents in float16, computed in bfloat16 and kept in `file`."""
    if not file.is_file():
        chunks = [encode_all(vae, part, batch=64, mixed=True) for part in pixels.split(512)]
        save_tensors((torch.cat(chunks) * vae.config.scaling_factor).half(), file)
    return torch.load(file, weights_only=True)
