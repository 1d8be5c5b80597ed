"""The visual encoders of Tables 5 and 6 at embedded scale, by name, and a LLaVA around each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import GroundingError

if TYPE_CHECKING:
    from torch import nn


WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # as transformers and diffusers name them


@dataclass(frozen=True)
class Variant:
    """One visual encoder.

    Fields:
        name: of its runs and files.
        model: "LLaVA" or "DiffLMM".
        backbone: as the paper's tables call it, with the embedded models' names.
        towers: "clip" and "dino", whose features stand side by side; for DiffLMM the CLIP that is concatenated.
        implicit_captioner, positional_encoding, noise_step, up_block: as for `DiffusionVisionConfig`; with "LLaVA" not
            used.
    """

    name: str
    model: str
    backbone: str
    towers: tuple[str, ...] = ()
    implicit_captioner: bool = False
    positional_encoding: bool = False
    noise_step: int = 100
    up_block: int = 2

    @property
    def diffusion(self) -> bool:
        """Whether a U-Net is part of it."""
        return self.model == "DiffLMM"

    @property
    def parts(self) -> frozenset[str]:
        """Fields of `Parts` that the whole model is made of."""
        captioner = {"clip"} if self.implicit_captioner else set()
        return frozenset({"reader", *self.towers, *captioner, *(["diffusion"] if self.diffusion else [])})


TABLE5 = (
    Variant("clip", "LLaVA", "CLIP", ("clip",)),
    Variant("dino", "LLaVA", "DINO", ("dino",)),
    Variant("clip_dino", "LLaVA", "CLIP + DINO", ("clip", "dino")),
    Variant("sd", "DiffLMM", "SD"),
    Variant("sd_pe", "DiffLMM", "SD", positional_encoding=True),
    Variant("sd_pe_ic", "DiffLMM", "SD", positional_encoding=True, implicit_captioner=True),
    Variant("sd_clip", "DiffLMM", "SD + CLIP", ("clip",), positional_encoding=True, implicit_captioner=True),
)
TABLE6 = (
    next(variant for variant in TABLE5 if variant.name == "sd"),
    *(Variant(f"sd_t{step}", "DiffLMM", "SD", noise_step=step) for step in (0, 200, 300)),
    *(Variant(f"sd_b{block}", "DiffLMM", "SD", up_block=block) for block in (1, 3, 4)),
)
VARIANTS = {variant.name: variant for variant in (*TABLE5, *TABLE6)}


def find_variant(name: str) -> Variant:
    """The variant of that name.

    Raises:
        GroundingError: there is none.
    """
    if name not in VARIANTS:
        raise GroundingError(f"no encoder variant is called {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


@dataclass(frozen=True)
class Parts:
    """Folders of the models that the variants are made of: CLIP, DINO, latent diffusion model, language model."""

    clip: Path
    dino: Path
    diffusion: Path
    reader: Path

    def fingerprints(self, variant: Variant) -> dict[str, str]:
        """The `fingerprint` of each part that the variant is made of, by its field's name."""
        return {name: fingerprint(getattr(self, name)) for name in sorted(variant.parts)}


def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a model's weights as they are shipped, in float16.

    The VAE's decoder does not count, for no encoder sees with it. `core.provenance.fingerprint` tells loaded models
    apart by their first values in float32; this one is alike before and after a model is shipped.

    Raises:
        GroundingError: the folder holds no weights.
    """
    from safetensors.torch import load_file

    files = sorted(file for file in folder.rglob("*.safetensors") if file.name in WEIGHTS)  # no tag head of CLIP's
    if not files:
        raise GroundingError(f"{str(folder)!r} holds no weights ({' or '.join(WEIGHTS)})")
    digest = hashlib.sha256()
    for file in files:
        part = file.parent.relative_to(folder).as_posix()
        for name, tensor in sorted(load_file(file).items()):
            if part == "vae" and name.startswith(("decoder.", "post_quant_conv.")):
                continue
            rounded = tensor.half() if tensor.is_floating_point() else tensor
            digest.update(f"{part} {name} {tuple(rounded.shape)}".encode())
            digest.update(rounded.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def build_encoder(variant: Variant, parts: Parts, *, seed: int = 0) -> nn.Module:
    """The variant's frozen parts, and what learns with random weights of `seed`."""
    import torch
    from transformers import CLIPVisionModel, Dinov2Model

    from core.encoders import register_encoders
    from core.encoders.combined import branch, combine
    from core.encoders.diffusion import DiffusionVisionModel

    register_encoders()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if variant.diffusion:
            encoder = DiffusionVisionModel.from_parts(
                parts.diffusion,
                parts.clip if "clip" in variant.parts else None,
                image_size=160,
                patch_size=16,
                clip_layer=-1,
                noise_step=variant.noise_step,
                up_block=variant.up_block,
                implicit_captioner=variant.implicit_captioner,
                concat_clip="clip" in variant.towers,
                positional_encoding=variant.positional_encoding,
            )
        elif variant.towers == ("clip",):
            encoder = CLIPVisionModel.from_pretrained(parts.clip)
        else:
            classes = {"clip": CLIPVisionModel, "dino": Dinov2Model}
            towers = [classes[kind].from_pretrained(getattr(parts, kind)) for kind in variant.towers]
            layers = {"clip": -1, "dino": None}
            branches = [
                branch(tower.config, layer=layers[kind]) for kind, tower in zip(variant.towers, towers, strict=True)
            ]
            encoder = combine(*towers, branches=branches, image_size=120, patch_size=12)
    encoder.config.name_or_path = ""  # the configuration names no folder of the machine it was made on
    encoder.requires_grad_(False)
    return encoder.eval()


def build_llava(variant: Variant, parts: Parts, *, seed: int = 0) -> tuple[Any, Any]:
    """(LLaVA, processor) around the variant's encoder: the language model as it was pre-trained, a new projector."""
    from core.training.assemble import assemble
    from embedded.recipes.tokenizer import build_processor

    model, processor = assemble(parts.reader, build_encoder(variant, parts, seed=seed), seed=seed)
    model.config.vision_feature_layer = -1  # of a bare CLIP, too
    processor = build_processor(processor.tokenizer, model.config.vision_config)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.name_or_path = ""
    return model, processor
