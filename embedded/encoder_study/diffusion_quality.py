"""How good the latent diffusion model is: what the embedded CLIP recognises in its pictures, what its features know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from core.encoders.features import noised, seeded_maps
from embedded.encoder_study import probes
from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.probes import WORDS, Probe, ProbeRecipe, fit_probe, precisions
from embedded.encoder_study.variants import Parts, find_variant
from embedded.recipes.autoencoder import encode_all, reconstruct
from embedded.recipes.clip import encode_window
from embedded.recipes.denoising import LatentDiffusion, paint
from embedded.recipes.diffusion import text_ids
from embedded.recipes.fitting import half_precision
from embedded.scenes.captions import listed
from embedded.scenes.pictures import SHAPES, TAGS, multi_hot, normalise, tag_numbers
from embedded.scenes.scenes import make_scene

NOISE_STEPS = (0, 100, 200, 300, 500)
CELL = 16  # pixels of a picture that one patch of CLIP sees


@dataclass(frozen=True)
class Judge:
    """The embedded CLIP with a linear probe of its features, which names what a picture shows.

    Fields:
        encoder: `CLIPVisionModel`; sees the pictures at three quarters of their size, as it does scenes of 160 px.
        probe: of its last layer's patch features.
    """

    encoder: Any
    probe: Probe

    @torch.no_grad()
    def scores(self, pictures: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n t"]:
        """Scores of `TAGS` for pictures in 0..1; small ones stand in the middle of CLIP's grid of positions."""
        cells, patch = pictures.shape[-1] // CELL, self.encoder.config.patch_size
        corner = (self.encoder.config.image_size // patch - cells) // 2
        side = cells * patch
        sized = interpolate(pictures, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        pixels = (255 * sized).round().clamp(0, 255).to(torch.uint8)
        chunks = [encode_window(self.encoder, normalise(part), corner, corner) for part in pixels.split(100)]
        return self.probe(torch.cat(chunks))


def fit_judge(clip: Path, features: Float[Tensor, "n k c"], tags: Sequence[Sequence[int]], *, state: Path) -> Judge:
    """The judge from the embedded CLIP's folder and its features of training scenes."""
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(clip).eval().requires_grad_(False)
    return Judge(encoder, fit_probe(features, multi_hot(tags), probes.ProbeRecipe(), state=state))


def embedded_judge(work: Path, parts: Parts, pixels: UInt8[Tensor, "n 3 160 160"], tags: Sequence) -> Judge:
    """The judge of a work folder, fitted to the first of its training scenes."""
    number = min(probes.ProbeRecipe().scenes, len(pixels))
    features = FeatureCache(work / "features", parts, pixels).frozen(find_variant("clip"), range(number))["features"]
    return fit_judge(parts.clip, features, tags[:number], state=work / "judge.tmp.pt")


def requests(number: int, objects: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Texts that ask for as many objects as `objects` says in turn, and their tags, drawn as held-out scenes are."""
    texts, tags = [], []
    for index in range(number):
        size = SHAPES[index % len(SHAPES)]
        scene = make_scene("val", 10_000 + index, size=size, n_objects=objects[index % len(objects)])
        texts.append(listed(scene.caption))
        tags.append(tag_numbers(scene))
    return texts, tags


def recognised(scores: Float[Tensor, "n t"], tags: Sequence[Sequence[int]]) -> dict[str, dict[str, float]]:
    """Share of the asked words that are among the best-scored of their kind, as many as are asked for.

    Returns:
        For "category" and "colour": "found", and "chance", what random scores get.
    """
    result, wanted = {}, multi_hot(tags).bool()
    for kind in ("category", "colour"):
        columns = [TAGS.index(name) for name in WORDS[kind]]
        asked, ranks = wanted[:, columns], scores[:, columns].argsort(1, descending=True).argsort(1)
        number = asked.sum(1, keepdim=True)
        share = (number.float().square().sum() / len(columns) / number.sum()).item()
        result[kind] = {"found": round((ranks < number)[asked].float().mean().item(), 4), "chance": round(share, 4)}
    return result


def painted(
    model: LatentDiffusion, judge: Judge, number: int, objects: Sequence[int], *, batch: int = 50, **options: Any
) -> dict[str, dict[str, float]]:
    """What the judge recognises in pictures painted from pure noise; the options are `paint`'s."""
    texts, tags = requests(number, objects)
    pictures = [paint(model, texts[start : start + batch], seed=start, **options) for start in range(0, number, batch)]
    return recognised(judge.scores(torch.cat(pictures)), tags)


@torch.no_grad()
def reconstructed(
    vae: Any, judge: Judge, pixels: UInt8[Tensor, "n 3 H W"], tags: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """PSNR of held-out scenes through the VAE, and the judge's mean average precision before and after.

    Returns:
        "psnr", in dB of the squared error over all pixels, and "psnr_by_scene", the mean over the scenes' own PSNR;
        "originals" and "reconstructions", as `probe`'s "mean_average_precision".
    """
    original = pixels.float() / 255
    after = reconstruct(vae, pixels) / 2 + 0.5
    wanted, squared = multi_hot(tags), (after - original).square().mean((1, 2, 3))
    return {
        "scenes": len(pixels),
        "psnr": round(-10 * squared.mean().log10().item(), 2),
        "psnr_by_scene": round(-10 * squared.log10().mean().item(), 2),
        "originals": precisions(judge.scores(original), wanted)["mean_average_precision"],
        "reconstructions": precisions(judge.scores(after), wanted)["mean_average_precision"],
    }


@torch.no_grad()
def noise_errors(
    model: LatentDiffusion, latents: Float[Tensor, "n c h w"], texts: Sequence[str], *, steps: Sequence[int]
) -> dict[str, float]:
    """Mean squared error of the predicted noise at some noise steps, with one seeded noise map per picture."""
    words = model.text_encoder(text_ids(model.tokenizer, texts)).last_hidden_state
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    errors = {}
    for step in steps:
        noisy = model.scheduler.add_noise(latents, noise, torch.tensor([step]))
        predicted = model.unet(noisy, step, encoder_hidden_states=words).sample
        errors[str(step)] = round((predicted - noise).square().mean().item(), 4)
    return errors


@torch.no_grad()
def block_features(
    model: LatentDiffusion, latents: Float[Tensor, "n c h w"], step: int, *, cells: int = 10, batch: int = 50
) -> list[Float[Tensor, "n k _"]]:
    """Each up block's output at a noise step with the empty text, as DiffLMM sees it: float16 on a square grid.

    Computed in `half_precision`, for its speed.
    """
    from core.encoders.frozen import to_grid_size

    empty = model.text_encoder(text_ids(model.tokenizer, [""])).last_hidden_state
    noise, _ = next(seeded_maps(tuple(latents.shape[1:]), seed=0, count=1))
    chunks: list[list[Tensor]] = [[] for _ in model.unet.up_blocks]

    def keep(rows: list[Tensor]) -> Callable:
        return lambda block, inputs, output: rows.append(
            to_grid_size(output.float(), (cells, cells)).flatten(2).transpose(1, 2).half()
        )

    hooks = [block.register_forward_hook(keep(rows)) for block, rows in zip(model.unet.up_blocks, chunks, strict=True)]
    try:
        for part in latents.float().split(batch):
            noisy = noised(part, noise, step, model.scheduler)
            with half_precision():
                model.unet(noisy, step, encoder_hidden_states=empty.expand(len(part), -1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(rows) for rows in chunks]


def feature_table(
    model: LatentDiffusion,
    latents: tuple[Tensor, Tensor],
    tags: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    *,
    steps: Sequence[int] = NOISE_STEPS,
    recipe: ProbeRecipe,
    state: Path,
) -> list[dict[str, Any]]:
    """Probes of every up block's features at every noise step.

    Args:
        latents, tags: scaled latents and tag numbers of training and held-out scenes.

    Returns:
        A row for each noise step and block: "noise_step", "up_block" (from 1) and `probe`'s result.
    """
    words, rows = [multi_hot(numbers) for numbers in tags], []
    for step in steps:
        blocks = zip(*(block_features(model, part, step) for part in latents), strict=True)
        for number, (train, held_out) in enumerate(blocks, start=1):
            found = precisions(fit_probe(train, words[0], recipe, state=state)(held_out), words[1])
            rows.append({"noise_step": step, "up_block": number, **found})
    return rows


def averaged_model(vae: Any, parts: Mapping[str, Any]) -> LatentDiffusion:
    """A VAE with the parts that `train_diffusion` hands to its `measure`."""
    return LatentDiffusion(vae, *(parts[name] for name in ("unet", "scheduler", "tokenizer", "text_encoder")))


def scaled(vae: Any, pixels: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
    """Scaled latents of pictures."""
    return encode_all(vae, pixels) * vae.config.scaling_factor
