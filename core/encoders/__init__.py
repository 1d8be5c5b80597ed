"""Visual encoders beyond a single CLIP, as ordinary transformers models.

`DiffusionVisionModel` (DiffLMM's encoder) and `CombinedVisionModel` (CLIP, DINOv2, ConvNeXt or several of them side by
side) take `pixel_values` of one size and one normalisation and give one grid of features, so that
`LlavaForConditionalGeneration` holds either of them as its vision tower without a change.

Importing this package loads nothing; `register_encoders` makes the classes known to transformers.
"""

from __future__ import annotations


def register_encoders() -> None:
    """Makes AutoConfig and AutoModel know the encoders; call it before a checkpoint that holds one is opened.

    Registering again changes nothing. diffusers is imported only when a diffusion encoder is built.
    """
    from transformers import AutoConfig, AutoModel

    from core.encoders.combined import CombinedVisionConfig, CombinedVisionModel
    from core.encoders.diffusion import DiffusionVisionConfig, DiffusionVisionModel

    for config, model in (
        (DiffusionVisionConfig, DiffusionVisionModel),
        (CombinedVisionConfig, CombinedVisionModel),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
