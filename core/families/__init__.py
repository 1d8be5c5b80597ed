"""Model families: where each one puts its visual tokens, and which pixels they see.

A new family is one small file here with a subclass of `core.families.base.Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from importlib import import_module

from core.errors import GroundingError
from core.families.base import Family

FAMILIES = {  # config.model_type, or with the vision tower's behind a "/": module and class
    "llava": "core.families.llava:Llava",
    "llava/pixtral": "core.families.pixtral:Pixtral",
    "llava_next": "core.families.llava_next:LlavaNext",
    "llava_onevision": "core.families.llava_onevision:LlavaOnevision",
    "vipllava": "core.families.llava:Llava",
    "fast_vlm": "core.families.fast_vlm:FastVlm",
    "mistral3": "core.families.pixtral:Mistral3",
    "qwen2_vl": "core.families.qwen2_5_vl:Qwen2_5_VL",
    "qwen2_5_vl": "core.families.qwen2_5_vl:Qwen2_5_VL",
    "qwen3_vl": "core.families.qwen2_5_vl:Qwen2_5_VL",
    "qwen3_vl_moe": "core.families.qwen2_5_vl:Qwen2_5_VL",
    "internvl": "core.families.internvl:InternVL",
    "aya_vision": "core.families.internvl:AyaVision",
    "idefics3": "core.families.idefics3:Idefics3",
    "smolvlm": "core.families.idefics3:Idefics3",
    "paligemma": "core.families.paligemma:PaliGemma",
    "gemma3": "core.families.gemma3:Gemma3",
    "gemma4": "core.families.gemma4:Gemma4",
    "glm4v": "core.families.qwen2_5_vl:Glm4v",
    "glm46v": "core.families.qwen2_5_vl:Glm4v",
    "cohere2_vision": "core.families.internvl:Cohere2Vision",
    "ovis2": "core.families.ovis2:Ovis2",
    "molmo2": "core.families.molmo2:Molmo2",
    "cambrian": "core.families.cambrian:Cambrian",
}

NO_GRID = {  # config.model_type: why its visual tokens are no places on the image
    "blip-2": "its visual tokens are the latent queries of a Q-Former",
    "instructblip": "its visual tokens are the latent queries of a Q-Former",
    "instructblipvideo": "its visual tokens are the latent queries of a Q-Former",
    "idefics": "its visual tokens are the latents of a perceiver resampler and enter through cross-attention",
    "idefics2": "its visual tokens are the latents of a perceiver resampler",
    "kosmos-2": "its visual tokens are the latent queries of a resampler",
    "kosmos-2.5": "its visual tokens are the latent queries of a resampler",
    "aria": "its visual tokens are the latent queries of a cross-attention projector",
    "florence2": "its decoder sees the image through cross-attention, not as positions of its sequence",
    "mllama": "its visual tokens enter through cross-attention layers, not as positions of the sequence",
}


def family_class(model_type: str, vision_type: str | None = None) -> type[Family]:
    """The adapter class for a model's `config.model_type` and, where it matters, its vision tower's.

    Raises:
        GroundingError: the family has no spatial grid of visual tokens, or no adapter yet.
    """
    if model_type in NO_GRID:
        raise GroundingError(
            f"a model of type {model_type!r} cannot be grounded by attention: {NO_GRID[model_type]}, so there is no "
            f"spatial grid to map back to the image; use a model of type {', '.join(FAMILIES)}"
        )
    if model_type not in FAMILIES:
        raise GroundingError(
            f"no adapter for models of type {model_type!r}; supported are {', '.join(FAMILIES)}. A new family is one "
            "subclass of core.families.base.Family and one line in core.families.FAMILIES"
        )
    module, name = FAMILIES.get(f"{model_type}/{vision_type}", FAMILIES[model_type]).split(":")
    return getattr(import_module(module), name)
