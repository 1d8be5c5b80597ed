"""The model that stage 1 starts from: a language model, a visual encoder, and a new projector between them.

`python -m core.training.assemble --language-model lmsys/vicuna-7b-v1.5 --clip openai/clip-vit-large-patch14-336
--diffusion DIR --output DIR` makes DiffLMM; without --diffusion it makes LLaVA-1.5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import GroundingError


def assemble(
    language_model: str | Path, encoder: nn.Module, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """(LlavaForConditionalGeneration, LlavaProcessor) with a projector of random weights.

    Args:
        language_model: directory or hub id of a causal language model with its tokenizer.
        encoder: `DiffusionVisionModel`, `CombinedVisionModel` or transformers' `CLIPVisionModel`. A bare CLIP gives
            LLaVA-1.5 itself: penultimate layer, class token left out.
        seed: of the projector's weights.
        dtype: of the whole model.

    Raises:
        GroundingError: no language model there.

    Source: LLaVA-1.5; the projector is two linear layers with GELU. The visual tokens are embedded under a token of
    their own, whose row in the table is never read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

    from core.encoders.released import IMAGE

    try:
        base = AutoModelForCausalLM.from_pretrained(str(language_model), dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(str(language_model))
    except (OSError, ValueError) as error:
        raise GroundingError(
            f"the language model could not be loaded from {str(language_model)!r}: {str(error).splitlines()[0]}"
        ) from error
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    token = tokenizer.convert_tokens_to_ids(IMAGE)
    if token >= base.config.vocab_size:
        base.resize_token_embeddings(token + 1, mean_resizing=False)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(_config(encoder.config, base.config, token))
    model.model.vision_tower, model.model.language_model, model.lm_head = encoder.to(dtype), base.model, base.lm_head
    model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        bound = linear.in_features**-0.5  # torch's own start of a linear layer
        for weight in (linear.weight, linear.bias):
            weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    model.generation_config = base.generation_config
    return model.eval(), _processor(encoder.config, tokenizer)


def _config(vision: Any, text: Any, token: int) -> Any:
    from transformers import LlavaConfig

    from core.encoders.llava import llava_config

    if vision.model_type != "clip_vision_model":
        return llava_config(vision, text, image_token_id=token)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _processor(vision: Any, tokenizer: Any) -> Any:
    from transformers import LlavaImageProcessor, LlavaProcessor

    from core.encoders.llava import llava_processor
    from core.encoders.released import CHAT

    if vision.model_type != "clip_vision_model":
        return llava_processor(vision, tokenizer, chat_template=CHAT)
    side = vision.image_size
    images = LlavaImageProcessor(do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if it went well, 2 if the input was at fault."""
    options = _parser().parse_args(arguments)
    try:
        encoder = _encoder(options)
        model, processor = assemble(
            options.language_model, encoder, seed=options.seed, dtype=getattr(torch, options.dtype)
        )
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    print(options.output)
    return 0


def _encoder(options: argparse.Namespace) -> nn.Module:
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(options.seed)  # what is new in the encoder: captioner and positions
    if options.diffusion is not None:
        from core.encoders import register_encoders
        from core.encoders.diffusion import DiffusionVisionModel

        register_encoders()
        return DiffusionVisionModel.from_parts(
            options.diffusion,
            options.clip,
            dtype=dtype,
            noise_step=options.noise_step,
            up_block=options.up_block,
            implicit_captioner=options.implicit_captioner,
            concat_clip=options.concat_clip,
            positional_encoding=options.positional_encoding,
            image_size=options.image_size,
        )
    from transformers import CLIPVisionModel

    if options.clip is None:
        raise GroundingError("there is no visual encoder; give --clip, --diffusion or both")
    try:
        return CLIPVisionModel.from_pretrained(options.clip, dtype=dtype)
    except (OSError, ValueError) as error:
        raise GroundingError(f"no CLIP in {options.clip!r}: {str(error).splitlines()[0]}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m core.training.assemble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--language-model", required=True, help="directory or hub id")
    parser.add_argument("--clip", help="directory or hub id of a CLIP")
    parser.add_argument("--diffusion", help="directory or hub id of a latent diffusion model in diffusers' layout")
    parser.add_argument("--output", type=Path, required=True, help="directory of the assembled model")
    parser.add_argument("--seed", type=int, default=0, help="of all new weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--noise-step", type=int, default=100)
    parser.add_argument("--up-block", type=int, default=2, help="counted from 1")
    parser.add_argument("--image-size", type=int, default=384, help="of DiffLMM's pictures, pixels")
    for name in ("implicit-captioner", "concat-clip", "positional-encoding"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
