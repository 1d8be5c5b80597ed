"""LLaVA around an encoder of this package or a CLIP: its configuration, its tokenizer and its processor."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from core.encoders.normalisation import CLIP_MEAN, CLIP_STD
from core.errors import GroundingError
from core.prompts import IMAGE, keep_image_gap

SQUARES = ("crop", "pad")
PIXELS = (  # what an image processor does, apart from padding
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def llava_config(vision_config: Any, text_config: Any, *, image_token_id: int, **options: Any) -> Any:
    """A `LlavaConfig` that takes the encoder's one output as it is; of a bare CLIP the penultimate layer's patches.

    Args:
        vision_config: `DiffusionVisionConfig`, `CombinedVisionConfig` or transformers' `CLIPVisionConfig`.
        text_config: the language model's configuration.
        image_token_id: id of the image token.
        options: further fields of `LlavaConfig`.

    Source: LLaVA-1.5 for CLIP.
    """
    from transformers import LlavaConfig

    from core.encoders import register_encoders

    register_encoders()
    taken = {"vision_feature_layer": -2 if _is_clip(vision_config) else -1}
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=image_token_id,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        vision_feature_select_strategy=_strategy(vision_config),
        **taken | options,
    )


def llava_processor(
    vision_config: Any,
    tokenizer: Any,
    *,
    square: str = "pad",
    chat_template: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Any:
    """The `LlavaProcessor` whose pictures and placeholders fit the encoder.

    Args:
        vision_config: as above; its image_size, patch_size, image_mean and image_std (CLIP's own have none: CLIP's)
            are used.
        tokenizer: the language model's, with the image token.
        square: "pad" pads to a square with the mean colour, as LLaVA-1.5 does from stage 2 on; "crop" resizes the
            shorter edge and crops the centre, as in its stage 1.
        chat_template: Jinja template; None for the tokenizer's.
        mean, std: another normalisation than the encoder takes it for; only the published weights were trained so.

    Raises:
        GroundingError: another `square`.
    """
    from transformers import CLIPImageProcessor, LlavaImageProcessor, LlavaProcessor

    _check_square(square)
    side = vision_config.image_size
    options = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": list(getattr(vision_config, "image_mean", CLIP_MEAN) if mean is None else mean),
        "image_std": list(getattr(vision_config, "image_std", CLIP_STD) if std is None else std),
    }
    image_processor = LlavaImageProcessor(do_pad=True, **options) if square == "pad" else CLIPImageProcessor(**options)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=_strategy(vision_config),
        num_additional_image_tokens=int(_is_clip(vision_config)),  # the class token, which is left out
        chat_template=chat_template or getattr(tokenizer, "chat_template", None),
    )


def llava_tokenizer(language_model: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer of a language model, with LLaVA's image token; also from a sentencepiece `tokenizer.model` alone.

    Args:
        language_model: directory or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        GroundingError: no tokenizer there.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(language_model), revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise GroundingError(
            f"the tokenizer could not be loaded from {str(language_model)!r}: {str(error).strip().splitlines()[0]} "
            "(a sentencepiece tokenizer.model needs the packages protobuf and sentencepiece)"
        ) from error
    if hasattr(tokenizer, "legacy"):  # transformers does not write down what text behind a special token begins with
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    keep_image_gap(tokenizer)
    return tokenizer


def with_square(processor: Any, square: str) -> Any:
    """The LlavaProcessor with another way to a square: itself where that is its way, or else a copy.

    Args:
        processor: of any LLaVA; what its image processor does apart from padding stays.
        square: "pad" pads with the mean colour before anything else; "crop" does not pad, so that CLIP's processor
            crops the centre.

    Raises:
        GroundingError: another `square`.

    Source: `image_aspect_ratio` "pad" and "square" of LLaVA's training and evaluation.
    """
    from transformers import LlavaImageProcessor, LlavaImageProcessorPil

    _check_square(square)
    before = processor.image_processor
    if bool(getattr(before, "do_pad", False)) == (square == "pad"):
        return processor
    kind = LlavaImageProcessorPil if getattr(before, "backend", "") == "pil" else LlavaImageProcessor
    options = {name: getattr(before, name, None) for name in PIXELS}
    changed = copy(processor)
    changed.image_processor = kind(do_pad=square == "pad", **options)
    return changed


def _check_square(square: str) -> None:
    if square not in SQUARES:
        raise GroundingError(f"unknown square {square!r}; use one of {', '.join(SQUARES)}")


def _is_clip(vision_config: Any) -> bool:
    return vision_config.model_type == "clip_vision_model"


def _strategy(vision_config: Any) -> str:
    return "default" if _is_clip(vision_config) else "full"
