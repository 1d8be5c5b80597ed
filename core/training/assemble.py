"""The model that stage 1 starts from: a language model, a visual encoder, and a new projector between them.

`python -m core.training.assemble --language-model lmsys/vicuna-7b-v1.5 --clip openai/clip-vit-large-patch14-336
--diffusion DIR --output DIR` makes DiffLMM; without --diffusion it makes LLaVA-1.5. With --model in the place of parts,
what learns on the visual side of a LLaVA or DiffLMM begins anew.
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

    The processor's chat template is the one that stage 2 trains with, "vicuna_v1".

    Source: LLaVA-1.5; the projector is two linear layers with GELU. The visual tokens are embedded under a token of
    their own, whose row in the table is never read.
    """
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    from core.encoders.llava import llava_config, llava_processor, llava_tokenizer
    from core.prompts import IMAGE, TEMPLATES

    try:
        base = AutoModelForCausalLM.from_pretrained(str(language_model), dtype=dtype)
    except (OSError, ValueError) as error:
        raise GroundingError(
            f"the language model could not be loaded from {str(language_model)!r}: {str(error).splitlines()[0]}"
        ) from error
    tokenizer = llava_tokenizer(language_model)
    token = tokenizer.convert_tokens_to_ids(IMAGE)
    if token >= base.config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base.resize_token_embeddings(token + 1, mean_resizing=False)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava_config(encoder.config, base.config, image_token_id=token))
    model.model.vision_tower, model.model.language_model, model.lm_head = encoder.to(dtype), base.model, base.lm_head
    model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        bound = linear.in_features**-0.5  # torch's own start of a linear layer
        for weight in (linear.weight, linear.bias):
            weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    model.generation_config = base.generation_config
    return model.eval(), llava_processor(encoder.config, tokenizer, chat_template=TEMPLATES["vicuna_v1"])


def renew(model: nn.Module, *, seed: int = 0, positions_std: float | None = None) -> nn.Module:
    """The model with new random weights, in place, in all that learns on its visual side: projector, captioner, PE.

    Args:
        model: LLaVA or DiffLMM.
        seed: of the new weights.
        positions_std: of PE's; None for the encoder's own.

    Raises:
        GroundingError: not a LLaVA-like model.
    """
    from core.encoders.frozen import PositionalEncoding
    from core.training.stages import visual_parts

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in visual_parts(model):
            for part in model.get_submodule(name).modules():
                if isinstance(part, PositionalEncoding):
                    nn.init.normal_(part.weight, std=part.std if positions_std is None else positions_std)
                elif hasattr(part, "reset_parameters"):
                    part.reset_parameters()
    return model


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if it went well, 2 if the input was at fault."""
    options = _parser().parse_args(arguments)
    names = ("noise_step", "up_block", "image_size", "implicit_captioner", "concat_clip", "positional_encoding")
    names += ("positions_std",)
    try:
        write_start(
            options.output,
            model=options.model,
            language_model=options.language_model,
            clip=options.clip,
            diffusion=options.diffusion,
            encoder={name: getattr(options, name) for name in names if getattr(options, name) is not None},
            seed=options.seed,
            dtype=getattr(torch, options.dtype),
        )
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


def write_start(
    output: str | Path,
    *,
    model: str = "",
    language_model: str = "",
    clip: str = "",
    diffusion: str = "",
    encoder: dict[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the checkpoint that stage 1 starts from, with its processor, to the directory `output`.

    Args:
        model: LLaVA or DiffLMM whose projector (captioner, positions) begins anew; or else parts:
        language_model: directory or hub id of a causal language model.
        clip, diffusion: of the encoder, see `load_encoder`.
        encoder: fields of `DiffusionVisionConfig`, with `diffusion` only; of a model that begins anew, positions_std.
        seed: of all new weights.
        dtype: of the whole model.

    Raises:
        GroundingError: neither a model nor parts, or both; a part that cannot be loaded; a model with other fields of
            the encoder.
    """
    from core.checkpoints import load_checkpoint

    if bool(model) == bool(language_model) or (model and (clip or diffusion)):
        raise GroundingError(
            f"start from a model ({model!r}) or from a language model ({language_model!r}) with CLIP and diffusion "
            f"({clip!r}, {diffusion!r}): give one of the two"
        )
    encoder = dict(encoder or {})
    if model:
        std = encoder.pop("positions_std", None)
        if encoder:
            raise GroundingError(
                f"{', '.join(sorted(encoder))} belong to an encoder put together from parts; {model!r} has its encoder"
            )
        network, processor = load_checkpoint(model, device="cpu", dtype=dtype)
        network = renew(network, seed=seed, positions_std=std)
    else:
        tower = load_encoder(clip, diffusion, seed=seed, dtype=dtype, **encoder)
        network, processor = assemble(language_model, tower, seed=seed, dtype=dtype)
    network.save_pretrained(output)
    processor.save_pretrained(output)
    return Path(output)


def load_encoder(
    clip: str = "", diffusion: str = "", *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    """A visual encoder from published parts: LLaVA's CLIP, or with `diffusion` DiffLMM's encoder.

    Args:
        clip: directory or hub id of a CLIP.
        diffusion: directory or hub id of a latent diffusion model in diffusers' layout.
        seed: of what is new in the encoder: captioner and positions.
        options: fields of `DiffusionVisionConfig`.

    Raises:
        GroundingError: no parts, a part that cannot be loaded, or options without `diffusion`.
    """
    from transformers import CLIPVisionModel

    if diffusion:
        from core.encoders import register_encoders
        from core.encoders.diffusion import DiffusionVisionModel

        register_encoders()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DiffusionVisionModel.from_parts(diffusion, clip or None, dtype=dtype, **options)
    if options:
        raise GroundingError(f"{', '.join(sorted(options))} are options of the diffusion encoder; give diffusion, too")
    if not clip:
        raise GroundingError("there is no visual encoder; give a CLIP, a diffusion model or both")
    try:
        return CLIPVisionModel.from_pretrained(clip, dtype=dtype)
    except (OSError, ValueError) as error:
        raise GroundingError(f"no CLIP in {clip!r}: {str(error).splitlines()[0]}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m core.training.assemble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="LLaVA or DiffLMM whose projector begins anew, instead of parts")
    parser.add_argument("--language-model", default="", help="directory or hub id")
    parser.add_argument("--clip", default="", help="directory or hub id of a CLIP")
    parser.add_argument("--diffusion", default="", help="directory or hub id of a model in diffusers' layout")
    parser.add_argument("--output", type=Path, required=True, help="directory of the assembled model")
    parser.add_argument("--seed", type=int, default=0, help="of all new weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--noise-step", type=int, help="with --diffusion (default: 100)")
    parser.add_argument("--up-block", type=int, help="with --diffusion, counted from 1 (default: 2)")
    parser.add_argument("--image-size", type=int, help="of DiffLMM's pictures, pixels (default: 384)")
    parser.add_argument("--positions-std", type=float, help="of the positional encodings' start (default: 0.02)")
    for name in ("implicit-captioner", "concat-clip", "positional-encoding"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help="with --diffusion (default: on)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
