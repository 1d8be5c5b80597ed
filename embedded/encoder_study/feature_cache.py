"""What the frozen parts of the encoders make of the training scenes, computed once and kept on disk.

Features are stored in float16 in chunks of scenes, so that each run computes only what no run before it needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from core.atomic import save_tensors
from core.encoders.features import noised, seeded_maps
from embedded.encoder_study.variants import Parts, Variant, build_encoder
from embedded.recipes.autoencoder import encode_all
from embedded.scenes.pictures import normalise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """Frozen features of training scenes.

    Fields:
        directory: where the chunks are kept; one for each set of parts and pictures.
        parts: the frozen models.
        pixels: the scenes at 160 px, which is what DiffLMM sees; CLIP and DINO alone get them at 120 px.
        chunk: scenes in a file.
    """

    directory: Path
    parts: Parts
    pixels: UInt8[Tensor, "n 3 160 160"]
    chunk: int = 500

    def frozen(self, variant: Variant, scenes: range) -> dict[str, Tensor]:
        """The variant's `encode_frozen` of these scenes in float16; for a bare CLIP {"features": [n, k, c]}."""
        if not variant.diffusion:
            features = [self._tower(kind, scenes) for kind in variant.towers]
            if variant.towers == ("clip",):
                return {"features": features[0].flatten(1, 2)}
            return {"features": torch.cat(features, dim=-1)}
        found = {"clip": self._chunks("clip_beside", scenes, self._clip_beside)} if "clip" in variant.parts else {}
        if variant.implicit_captioner:
            return {**found, "noisy": self._chunks(f"noisy_{variant.noise_step}", scenes, self._noisy(variant))}
        name = f"diffusion_{variant.noise_step}_{variant.up_block}"
        return {**found, "diffusion": self._chunks(name, scenes, self._diffusion(variant))}

    def latents(self, scenes: range) -> Float[Tensor, "n c h w"]:
        """The VAE's scaled latents."""
        return self._chunks("latents", scenes, self._latents)

    def _tower(self, kind: str, scenes: range) -> Float[Tensor, "n h w c"]:
        variant = Variant(kind, "LLaVA", kind, (kind,))
        return self._chunks(f"{kind}_alone", scenes, lambda: self._alone(variant))

    def _alone(self, variant: Variant) -> Callable[[range], Tensor]:
        encoder = build_encoder(variant, self.parts)

        def compute(rows: range) -> Tensor:
            pixels = normalise(smaller(self.pixels[rows.start : rows.stop]))
            if variant.towers == ("clip",):
                hidden = encoder(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
                side = int(hidden.shape[1] ** 0.5)
                return hidden.unflatten(1, (side, side))
            return encoder.encode_frozen(pixels)["features"]

        return compute

    def _clip_beside(self) -> Callable[[range], Tensor]:
        encoder = build_encoder(Variant("clip_beside", "DiffLMM", "", ("clip",), implicit_captioner=True), self.parts)
        return lambda rows: encoder.encode_clip(self._input(rows))

    def _latents(self) -> Callable[[range], Tensor]:
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(self.parts.diffusion / "vae").eval()
        return lambda rows: encode_all(vae, self.pixels[rows.start : rows.stop]) * vae.config.scaling_factor

    def _noisy(self, variant: Variant) -> Callable[[], Callable[[range], Tensor]]:
        def prepare() -> Callable[[range], Tensor]:
            encoder = build_encoder(variant, self.parts)
            return lambda rows: _noised(encoder, self.latents(rows))

        return prepare

    def _diffusion(self, variant: Variant) -> Callable[[], Callable[[range], Tensor]]:
        from core.encoders.frozen import to_grid_size

        def prepare() -> Callable[[range], Tensor]:
            encoder = build_encoder(variant, self.parts)

            def compute(rows: range) -> Tensor:
                noisy = _noised(encoder, self.latents(rows))[:, 0]
                words = encoder.empty_text.expand(len(noisy), -1, -1)
                output = encoder.unet(noisy, variant.noise_step, encoder_hidden_states=words).sample
                return to_grid_size(output, (10, 10)).permute(0, 2, 3, 1)

            return compute

        return prepare

    def _input(self, rows: range) -> Tensor:
        """The pictures as DiffLMM's processor gives them, in [-1, 1]."""
        return self.pixels[rows.start : rows.stop].float() / 127.5 - 1

    @torch.no_grad()
    def _chunks(self, name: str, scenes: range, prepare: Callable[[], Callable[[range], Tensor]]) -> Tensor:
        compute, found = None, []
        first = scenes.start // self.chunk * self.chunk
        for start in range(first, scenes.stop, self.chunk):
            file = self.directory / name / f"{start:06d}.pt"
            if not file.is_file():
                if compute is None:
                    log.info("features %s: computing from scene %d on", name, start)
                    compute = prepare()
                stop = min(start + self.chunk, len(self.pixels))
                pieces = [compute(range(i, min(i + 100, stop))) for i in range(start, stop, 100)]
                save_tensors(torch.cat(pieces).half(), file)
            found.append(torch.load(file, weights_only=True))
        return torch.cat(found)[scenes.start - first : scenes.stop - first]


def smaller(pixels: UInt8[Tensor, "b 3 H W"], *, side: int = 120) -> UInt8[Tensor, "b 3 side side"]:
    """Pictures resized as a processor resizes them: bicubic, antialiased, rounded to 8 bits."""
    resized = interpolate(pixels.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _noised(encoder: Any, latents: Tensor) -> Tensor:
    """[b, 1, c, h, w]: with the one noise map of the encoder's seed."""
    noise, _ = next(seeded_maps(tuple(latents.shape[1:]), seed=encoder.config.seed, count=1))
    return noised(latents.float(), noise, encoder.config.noise_step, encoder.scheduler)[:, None]
