"""Model families: where each one puts its visual tokens, and which pixels they see.

A new family is one small file here with a subclass of `core.families.base.Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from importlib import import_module

from core.errors import GroundingError
from core.families.base import Family

FAMILIES = {  # config.model_type: module and class
    "llava": "core.families.llava:Llava",
    "llava_next": "core.families.llava_next:LlavaNext",
    "qwen2_5_vl": "core.families.qwen2_5_vl:Qwen2_5_VL",
}

NO_GRID = {  # config.model_type: why its visual tokens are no places on the image
    "blip-2": "its visual tokens are the latent queries of a Q-Former",
    "instructblip": "its visual tokens are the latent queries of a Q-Former",
    "instructblipvideo": "its visual tokens are the latent queries of a Q-Former",
    "idefics": "its visual tokens are the latents of a perceiver resampler and enter through cross-attention",
    "idefics2": "its visual tokens are the latents of a perceiver resampler",
    "kosmos-2": "its visual tokens are the latent queries of a resampler",
    "mllama": "its visual tokens enter through cross-attention layers, not as positions of the sequence",
}


def family_class(model_type: str) -> type[Family]:
    """The adapter class for a model's `config.model_type`.

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
    module, name = FAMILIES[model_type].split(":")
    return getattr(import_module(module), name)
