"""Published parts of the diffusion encoder: where they are read from and what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.encoders.diffusion_config import DiffusionVisionConfig
from core.errors import GroundingError


@dataclass(frozen=True)
class Parts:
    """A configuration, the state dicts of "vae", "unet" and "clip", and the empty text's embedding."""

    config: DiffusionVisionConfig
    weights: dict[str, dict[str, Tensor]]
    empty_text: Float[Tensor, "s d"] | None


def load_parts(diffusion: str | Path, clip: str | Path | None, *, dtype: torch.dtype, **options: Any) -> Parts:
    """Reads the parts; see `DiffusionVisionModel.from_parts`.

    Raises:
        GroundingError: a part is missing or has no weights.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionModel

    refused = {"vae_config", "unet_config", "scheduler_config", "clip_config"} & set(options)
    if refused:
        raise GroundingError(f"{', '.join(sorted(refused))} come from the parts; leave them out of the options")
    fields = DiffusionVisionConfig(**options)
    vae = _load(AutoencoderKL, diffusion, "vae", torch_dtype=dtype)
    unet = _load(UNet2DConditionModel, diffusion, "unet", torch_dtype=dtype)
    scheduler = _load(DDIMScheduler, diffusion, "scheduler")
    weights = {"vae": vae.state_dict(), "unet": unet.state_dict()}
    extra: dict[str, Any] = {}
    if fields.uses_clip:
        if clip is None:
            raise GroundingError(
                "the implicit captioner and concat_clip need a CLIP; give its directory, or implicit_captioner=False "
                "and concat_clip=False"
            )
        tower = _load(CLIPVisionModel, clip, None, dtype=dtype)
        tower.config.name_or_path = ""  # what is saved later names no folder of this machine
        weights["clip"], extra["clip_config"] = tower.state_dict(), tower.config
    text = None if fields.implicit_captioner else empty_text_embedding(diffusion)
    if text is not None:
        extra["text_length"] = len(text)
    config = DiffusionVisionConfig(
        vae_config=_public(vae.config),
        unet_config=_public(unet.config),
        scheduler_config=_public(scheduler.config),
        **extra,
        **{key: value for key, value in options.items() if key not in extra},
    )
    return Parts(config, weights, text)


def empty_text_embedding(diffusion: str | Path) -> Float[Tensor, "s d"]:
    """What the diffusion model's own text encoder makes of the empty text, float32 [tokens, width].

    Raises:
        GroundingError: the model has no tokenizer or text_encoder.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = _load(CLIPTokenizer, diffusion, "tokenizer")
    encoder = _load(CLIPTextModel, diffusion, "text_encoder").eval()
    length = encoder.config.max_position_embeddings
    ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).last_hidden_state[0].float()


def _load(kind: Any, source: str | Path, part: str | None, **options: Any) -> Any:
    where = {} if part is None else {"subfolder": part}
    try:
        return kind.from_pretrained(str(source), **where, **options)
    except (OSError, ValueError) as error:
        name = f"its part {part!r}" if part else "a CLIP vision tower"
        raise GroundingError(
            f"{name} could not be loaded from {str(source)!r}: {str(error).splitlines()[0]} Give a directory or hub id "
            "in the layout of diffusers (vae, unet, scheduler, tokenizer, text_encoder) or, for CLIP, of transformers."
        ) from error


def _public(config: Any) -> dict[str, Any]:
    """A diffusers configuration as plain JSON values, without its private notes."""
    plain = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
