"""What the encoder variants are trained from and no shipped model holds, so that they can be trained without the rest.

CLIP, most of the U-Net and the VAE's encoder are in the shipped DiffLMM. Beside this file lies what is left: the
U-Net's last blocks, the VAE's decoder, the text encoder, DINO, and the language model that has read text alone, in
float16. `unpack` puts all of it together in a working directory as `embedded.train` would have left it there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import GroundingError
from core.weights import FOLDER as WEIGHTS

FOLDER = Path(__file__).parent
REST = "model.safetensors"  # of the U-Net and the VAE, what DiffLMM has not
UNPACKED = ("vision", "dino", "diffusion", "reader")  # parts of `embedded.train` that are finished by `unpack`


def unpack(work: Path, *, folder: Path = FOLDER, weights: Path = WEIGHTS) -> None:
    """Writes the shipped CLIP, DINO, latent diffusion model and text-only language model into a working directory.

    They are rounded to float16, as shipped.

    Args:
        folder: what `pack` and `pack_dino` wrote.
        weights: folder of the shipped models.

    Raises:
        GroundingError: a part lies in `work` already.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, Dinov2Model, LlamaForCausalLM

    there = [name for name in UNPACKED if (work / name).exists()]
    if there:
        raise GroundingError(f"{str(work)!r} holds {', '.join(there)} already; unpack into another working directory")
    tower, rest = _tower(weights), load_file(folder / REST)
    tower.clip.save_pretrained(work / "vision")
    Dinov2Model.from_pretrained(folder / "dino", dtype=torch.float32).save_pretrained(work / "dino")
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        model = kind.from_config(kind.load_config(folder / name))
        state = getattr(tower, name).state_dict() | _named(rest, f"{name}.")
        model.load_state_dict({key: value.float() for key, value in state.items()})
        model.save_pretrained(work / "diffusion" / name)
    DDIMScheduler.from_pretrained(folder / "scheduler").save_pretrained(work / "diffusion" / "scheduler")
    CLIPTokenizer.from_pretrained(folder / "text_encoder").save_pretrained(work / "diffusion" / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    text_encoder.save_pretrained(work / "diffusion" / "text_encoder")
    LlamaForCausalLM.from_pretrained(folder / "reader", dtype=torch.float32).save_pretrained(work / "reader")
    AutoTokenizer.from_pretrained(folder / "reader").save_pretrained(work / "reader")
    for name in (*UNPACKED, "vae"):
        (work / f"{name}.finished").touch()


def pack(work: Path, *, folder: Path = FOLDER, weights: Path = WEIGHTS) -> None:
    """Writes what `unpack` needs beside the shipped DiffLMM, which was made from the parts in `work`."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaForCausalLM

    tower, rest, diffusion = _tower(weights), {}, work / "diffusion"
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        model, held = kind.from_pretrained(diffusion / name), getattr(tower, name).state_dict()
        rest |= {f"{name}.{key}": value.half() for key, value in model.state_dict().items() if key not in held}
        model.register_to_config(_name_or_path="")  # the configuration names no folder of this machine
        model.save_config(folder / name)
    save_file(rest, folder / REST)
    DDIMScheduler.from_pretrained(diffusion / "scheduler").save_pretrained(folder / "scheduler")
    CLIPTokenizer.from_pretrained(diffusion / "tokenizer").save_pretrained(folder / "text_encoder")
    CLIPTextModel.from_pretrained(diffusion / "text_encoder", dtype=torch.float16).save_pretrained(
        folder / "text_encoder"
    )
    LlamaForCausalLM.from_pretrained(work / "reader", dtype=torch.float16).save_pretrained(folder / "reader")
    AutoTokenizer.from_pretrained(work / "reader").save_pretrained(folder / "reader")


def pack_dino(dino: Path, *, folder: Path = FOLDER) -> None:
    """Writes what `unpack` needs of a trained DINO, which no shipped model sees with."""
    from transformers import Dinov2Model

    Dinov2Model.from_pretrained(dino, dtype=torch.float16).save_pretrained(folder / "dino")


def _tower(weights: Path) -> Any:
    """The shipped DiffLMM's visual encoder, in float32."""
    from transformers import LlavaForConditionalGeneration

    from core.encoders import register_encoders

    register_encoders()
    return LlavaForConditionalGeneration.from_pretrained(weights / "difflmm", dtype=torch.float32).model.vision_tower


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
