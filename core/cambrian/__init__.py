"""Cambrian-1, the paper's third model, as an ordinary transformers model: four encoders, one spatial vision aggregator.

`CambrianForConditionalGeneration` and `CambrianProcessor` are saved and loaded like any other model's;
`core.cambrian.released` reads the layout that its authors publish.

Importing this package loads nothing; `register_cambrian` makes the classes known to transformers.
"""

from __future__ import annotations


def register_cambrian() -> None:
    """Makes the Auto classes know Cambrian-1, and AutoConfig the configuration of the published layout.

    Registering again changes nothing. timm is imported only when a model is built.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    from core.cambrian.configuration import CambrianConfig, ReleasedConfig
    from core.cambrian.model import CambrianForConditionalGeneration
    from core.cambrian.processing import CambrianImageProcessor, CambrianProcessor

    AutoConfig.register(CambrianConfig.model_type, CambrianConfig, exist_ok=True)
    AutoConfig.register(ReleasedConfig.model_type, ReleasedConfig, exist_ok=True)
    AutoModelForImageTextToText.register(CambrianConfig, CambrianForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(CambrianConfig, CambrianProcessor, exist_ok=True)
    backends = {"pil": CambrianImageProcessor, "torchvision": CambrianImageProcessor}  # one, whichever is preferred
    AutoImageProcessor.register(CambrianConfig, image_processor_classes=backends, exist_ok=True)
