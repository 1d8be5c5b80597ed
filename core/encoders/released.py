"""The published DiffLMM weights: their projector, their preprocessing, and their way into this package's layout.

They are LoRA weights on Vicuna-7B plus one projector (`mm_projector.*`) which also holds the implicit captioner. Where
they differ from the paper's equation 4, the `compat` options say so, and nothing else in the package has to know:
LLaVA's own projector becomes an identity behind them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.encoders.normalisation import CLIP_MEAN, CLIP_STD
from core.errors import GroundingError
from core.prompts import IMAGE, TEMPLATES

PROJECTOR = "mm_projector."
TEMPLATE = "llava_v1"  # what the released evaluation asks with
KEYS = {  # their name under mm_projector: ours in DiffusionVisionModel
    "clip_projector.0": "captioner.linear_1",
    "clip_projector.2": "captioner.linear_2",
    "clip_pe": "captioner.positions.weight",
    "sd_norm_layer": "head.sd_norm",
    "sd_proj_layer.0": "head.sd_linear",
    "linear.0": "head.linear_1",
    "linear.2": "head.linear_2",
    "vt_pe": "positions.weight",
}


def compat_options(settings: dict[str, Any], *, width: int, seed: int = 0) -> dict[str, Any]:
    """Options of `DiffusionVisionConfig` that reproduce a published checkpoint.

    - The processor normalises with CLIP's mean and std, but the encoder takes the pixels for 0.5/0.5: the VAE gets them
      as they are, and CLIP gets them un-normalised by 0.5/0.5 and normalised again. The weights were trained so.
    - The VAE's latents are sampled; ours with a seed, theirs without.
    - CLIP's input is resized bilinearly, without antialiasing.
    - The captioner's words have positions, and PE is added behind the projector instead of before it; where training
      begins anew, both begin as standard normal numbers.

    Args:
        settings: the checkpoint's config.json (its `mm_vision_*` values; published defaults where one is absent).
        width: the language model's hidden size.
        seed: of the noise.

    Source: the released code's `SDCLIPBlock`, `SDCLIPFeaturizer` and `SDCLIPVisionTower`.
    """
    positions = int(settings.get("mm_vision_sd_pe", 576)) > 0
    return {
        "noise_step": int(settings.get("mm_vision_sd_timestep", 100)),
        "noises": int(settings.get("mm_vision_sd_ensemble_size", 1)),
        "up_block": int(settings.get("mm_vision_select_layer", 1)) + 1,
        "implicit_captioner": bool(settings.get("mm_vision_sd_implicit_caption", True)),
        "concat_clip": bool(settings.get("mm_vision_sd_concat_clip", True)),
        "image_size": int(settings.get("mm_vision_resolution", 384)),
        "caption_positions": positions,
        "positional_encoding": positions,
        "positions_std": 1.0,
        "released_width": width,
        "latents": "sample",
        "resize": "bilinear",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "seed": seed,
    }


def projector_weights(directory: Path) -> dict[str, Tensor]:
    """The projector's tensors by their names after `mm_projector.`, from non_lora_trainables or mm_projector (.bin).

    Raises:
        GroundingError: neither file is there, or it holds no projector.
    """
    for name in ("non_lora_trainables.bin", "mm_projector.bin"):
        if (directory / name).is_file():
            state = torch.load(directory / name, map_location="cpu", weights_only=True)
            found = {key.split(PROJECTOR, 1)[1]: value for key, value in state.items() if PROJECTOR in key}
            if not found:
                raise GroundingError(f"{name} in {str(directory)!r} holds no {PROJECTOR}* weights; it is not a DiffLMM")
            return found
    raise GroundingError(
        f"{str(directory)!r} has neither non_lora_trainables.bin nor mm_projector.bin; give the published directory"
    )


def load_projector(encoder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies a published projector into a `DiffusionVisionModel` built with `compat_options`, in place.

    Raises:
        GroundingError: a tensor that has no place, has another shape, or is wanted and absent.
    """
    wanted = {
        name: value
        for name, value in encoder.state_dict().items()
        if name.split(".")[0] in ("captioner", "head", "positions")
    }
    side = encoder.config.image_size // encoder.config.patch_size
    renamed = {}
    for key, value in weights.items():
        name = _rename(key)
        if key.startswith(("clip_projector", "clip_pe")) and encoder.captioner is None:
            continue  # published also where the captioner is off
        if name is None or name not in wanted:
            raise GroundingError(f"{PROJECTOR}{key} has no place in this encoder; its options do not fit it")
        value = value.flatten(1) if key == "sd_proj_layer.0.weight" else value
        if name.endswith("positions.weight") and len(value) == side * side:
            value = value.unflatten(0, (side, side))
        if value.shape != wanted[name].shape:
            raise GroundingError(
                f"{PROJECTOR}{key} has shape {list(value.shape)}, this encoder's {name} {list(wanted[name].shape)}; "
                "give the diffusion model, the CLIP and the language model that the checkpoint was trained on"
            )
        renamed[name] = value
    missing = sorted(set(wanted) - set(renamed))
    if missing:
        raise GroundingError(f"the checkpoint's projector has nothing for {', '.join(missing)}")
    encoder.load_state_dict(renamed, strict=False)


def _rename(key: str) -> str | None:
    if key in KEYS:
        return KEYS[key]
    module, _, kind = key.rpartition(".")
    return f"{KEYS[module]}.{kind}" if module in KEYS else None


def load_released(
    directory: str | Path,
    *,
    language_model: str | Path,
    diffusion: str | Path,
    clip: str | Path,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> tuple[Any, Any]:
    """(LlavaForConditionalGeneration, LlavaProcessor) of published DiffLMM weights; save both with `save_pretrained`.

    Its chat template is "llava_v1" ("a curious human"), with which the released evaluation asks, although LLaVA's
    scripts train with "vicuna_v1" ("a curious user"); `core.lmm.load_lmm` takes either as its template.

    Args:
        directory: the published directory: config.json, non_lora_trainables.bin and, for stage 2, the LoRA adapter.
        language_model: directory or hub id of the base language model (Vicuna-7B v1.5).
        diffusion, clip: as for `DiffusionVisionModel.from_parts` (SD-1.5; CLIP ViT-L/14-336).
        dtype: of all weights; the published code runs in float16.
        seed: of the noise.

    Raises:
        GroundingError: a file is missing, or the weights do not fit the parts given.
    """
    from core.encoders.diffusion import DiffusionVisionModel
    from core.encoders.llava import llava_processor, llava_tokenizer

    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise GroundingError(f"{str(directory)!r} has no config.json; give the published directory")
    settings = json.loads((directory / "config.json").read_text())
    weights = projector_weights(directory)
    base = _merged(directory, language_model, dtype)
    options = compat_options(settings, width=base.config.hidden_size, seed=seed)
    encoder = DiffusionVisionModel.from_parts(diffusion, clip, dtype=dtype, **options)
    load_projector(encoder, weights)
    tokenizer = llava_tokenizer(language_model)
    model = _assemble(encoder, base, tokenizer)
    square = "pad" if settings.get("image_aspect_ratio", "pad") == "pad" else "crop"
    processor = llava_processor(
        encoder.config,
        tokenizer,
        square=square,
        chat_template=TEMPLATES[TEMPLATE],
        mean=list(CLIP_MEAN),
        std=list(CLIP_STD),
    )
    return model.eval(), processor


def _merged(directory: Path, language_model: str | Path, dtype: torch.dtype) -> Any:
    """The base language model, with the adapter merged into it if there is one."""
    from transformers import AutoModelForCausalLM

    try:
        base = AutoModelForCausalLM.from_pretrained(str(language_model), dtype=dtype)
    except (OSError, ValueError) as error:
        raise GroundingError(
            f"the language model could not be loaded from {str(language_model)!r}: {str(error).splitlines()[0]}"
        ) from error
    if not (directory / "adapter_config.json").is_file():
        return base
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(directory)).merge_and_unload()


def _assemble(encoder: nn.Module, base: Any, tokenizer: Any) -> Any:
    """LLaVA around both, with a projector that hands its input on unchanged."""
    from transformers import LlavaForConditionalGeneration

    from core.encoders.llava import llava_config

    token = tokenizer.convert_tokens_to_ids(IMAGE)
    known = base.config.vocab_size
    if token >= known:
        base.resize_token_embeddings(token + 1, mean_resizing=False)
        for table in (base.get_input_embeddings(), base.get_output_embeddings()):
            nn.init.zeros_(table.weight[known:])  # never read: the visual tokens stand in its place
    config = llava_config(encoder.config, base.config, image_token_id=token, projector_hidden_act="linear")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model, model.lm_head = encoder, base.model, base.lm_head
    model.model.multi_modal_projector.to_empty(device="cpu").to(base.dtype)
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    model.generation_config = base.generation_config
    return model
