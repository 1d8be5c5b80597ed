"""LLaVA and DiffLMM around one language model: the benchmark's scales, what they are built of, what they are given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from core.encoders.features import StopHere
from core.errors import GroundingError


@dataclass(frozen=True)
class Scale:
    """Sizes of the models; `vision` holds fields of `DiffusionVisionConfig`, `text` of `LlamaConfig`.

    Without `text` there is only visual encoding. The last word of the vocabulary stands for the picture.
    """

    vision: dict[str, Any]
    text: dict[str, Any] | None = None
    lora_rank: int = 128  # of stage 2
    batches: tuple[int, int] = (4, 4)  # samples of one training step, stages 1 and 2
    new_tokens: tuple[int, ...] = (1, 64)
    dtype: str = "float32"


VICUNA_7B = {
    "vocab_size": 32001,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
EMBEDDED_TEXT = {
    "vocab_size": 768,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
EMBEDDED_VISION = {
    "vae_config": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 64],
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "latent_channels": 4,
    },
    "unet_config": {
        "block_out_channels": [48, 96, 128, 128],
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "cross_attention_dim": 128,
        "attention_head_dim": 4,
    },
    "clip_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 120,
        "patch_size": 12,
    },
    "clip_layer": -1,
    "image_size": 160,
    "patch_size": 16,
}
SCALES = {
    "embedded": Scale(EMBEDDED_VISION, EMBEDDED_TEXT, lora_rank=4),  # the paper's share of the width
    "encoder": Scale({}),  # SD-1.5 and CLIP ViT-L/14-336, visual encoding only
    "paper": Scale({}, VICUNA_7B, batches=(16, 8), new_tokens=(1, 64, 256), dtype="bfloat16"),
}


@dataclass
class Pair:
    """Both models, and what is alike in them; `llava` and `difflmm` are None where there is only visual encoding."""

    clip: nn.Module  # LLaVA's vision tower
    encoder: nn.Module  # DiffLMM's
    whole: nn.Module  # DiffLMM's with the whole U-Net, the same weights up to the block that is used
    llava: Any
    difflmm: Any
    weights: str  # "random" or "shipped"


class WholeUNet(nn.Module):
    """Runs a whole U-Net and hands out the output of its `up_block`-th up block, taken by a hook."""

    def __init__(self, unet: nn.Module, up_block: int) -> None:
        super().__init__()
        self.unet, self.up_block = unet, up_block

    def forward(self, *inputs: Any, **options: Any) -> SimpleNamespace:
        taken: list[Tensor] = []
        block = self.unet.up_blocks[self.up_block - 1]
        handle = block.register_forward_hook(lambda module, given, output: taken.append(output))
        try:
            self.unet(*inputs, **options)
        finally:
            handle.remove()
        return SimpleNamespace(sample=taken[0])


def build(scale: Scale, *, device: str, dtype: torch.dtype, seed: int = 0) -> Pair:
    """Both models with random weights, made on the device in their dtype; they share those of CLIP and of the LLM."""
    from transformers import LlamaConfig, LlamaModel

    from core.encoders.diffusion import DiffusionVisionModel
    from core.encoders.diffusion_config import DiffusionVisionConfig

    torch.manual_seed(seed)
    vision = DiffusionVisionConfig(**scale.vision)
    with made(device, dtype):
        encoder = DiffusionVisionModel(vision).to(dtype).eval()
    clip = sharing(encoder.clip)
    pair = Pair(clip, encoder, whole_unet(encoder), None, None, "random")
    if scale.text is not None:
        text = LlamaConfig(**scale.text)
        with made(device, dtype):
            language = LlamaModel(text)
            head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        pair.llava = around(clip, language, head, vision.clip_layer)
        pair.difflmm = around(encoder, sharing(language), head, vision.clip_layer)
    return pair


def shipped(*, device: str, dtype: torch.dtype) -> Pair | None:
    """The embedded models; None where they are not shipped, or not around language models of one size."""
    from core.checkpoints import load_checkpoint
    from core.weights import FOLDER

    if not (FOLDER / "llava").is_dir() or not (FOLDER / "difflmm").is_dir():
        return None
    llava, difflmm = (load_checkpoint(FOLDER / name, device=device, dtype=dtype)[0] for name in ("llava", "difflmm"))
    sizes = [{name: getattr(model.config.text_config, name) for name in EMBEDDED_TEXT} for model in (llava, difflmm)]
    if sizes[0] != sizes[1]:
        return None
    towers = llava.model.vision_tower, difflmm.model.vision_tower
    return Pair(*towers, whole_unet(towers[1]), llava.eval(), difflmm.eval(), "shipped")


@contextmanager
def made(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New modules stand on the device in the dtype at once, never elsewhere before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def sharing(module: Any) -> Any:
    """A copy of a module that holds the same weights, not copies of them."""
    return copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})


def around(tower: nn.Module, language: nn.Module, head: nn.Module, clip_layer: int) -> Any:
    """LLaVA's class around a vision tower and a language model, with a new projector."""
    from transformers import LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    from core.encoders.llava import llava_config

    vision, token = tower.config, language.config.vocab_size - 1
    options = {"vision_feature_layer": clip_layer} if vision.model_type == "clip_vision_model" else {}
    config = llava_config(vision, language.config, image_token_id=token, **options)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with made(str(head.weight.device), head.weight.dtype):
        model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.model.vision_tower, model.model.language_model, model.lm_head = tower, language, head
    return model.eval()


def whole_unet(encoder: Any) -> Any:
    """The same encoder with a U-Net that does not stop early; all weights that both have are shared."""
    from diffusers import UNet2DConditionModel

    cut, up_block = encoder.unet, encoder.config.up_block
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(encoder.config.unet_config)
    for name, part in cut.named_children():
        if name not in ("up_blocks", "conv_norm_out", "conv_act", "conv_out"):
            setattr(unet, name, part)
    for place, block in enumerate(cut.up_blocks):
        if not isinstance(block, StopHere):
            unet.up_blocks[place] = block
    for part in (*unet.up_blocks[up_block:], unet.conv_norm_out, unet.conv_out):
        part.to_empty(device=encoder.device).to(encoder.dtype)
        for weight in part.parameters():
            nn.init.normal_(weight, std=0.02)
    whole = copy.copy(encoder)
    whole._modules = {**encoder._modules, "unet": WholeUNet(unet.eval().requires_grad_(False), up_block)}
    return whole


def visual_tokens(pair: Pair) -> int:
    """Number of visual tokens of one picture, the same for both models.

    Raises:
        GroundingError: the two grids differ.
    """
    counts = [(tower.config.image_size // tower.config.patch_size) ** 2 for tower in (pair.clip, pair.encoder)]
    if counts[0] != counts[1]:
        raise GroundingError(f"LLaVA has {counts[0]} visual tokens and DiffLMM {counts[1]}; give both the same grid")
    return counts[0]


def pixels(tower: nn.Module, batch: int) -> Tensor:
    """Random pixel values of the tower's own picture size, in its dtype."""
    side = tower.config.image_size
    return torch.randn(batch, 3, side, side, device=tower.device, dtype=tower.dtype)


def inputs(model: Any, *, batch: int, text_tokens: int, tokens: int, labels: bool = False) -> dict[str, Tensor]:
    """A picture's tokens between the first word and `text_tokens` random ones, which carry the loss."""
    device, image = model.device, model.config.image_token_id
    words = torch.randint(model.config.text_config.vocab_size - 1, (batch, 1 + text_tokens), device=device)
    words += words >= image  # any but the picture's
    first, words = words[:, :1], words[:, 1:]
    ids = torch.cat([first, torch.full((batch, tokens), image, device=device), words], dim=1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["pixel_values"] = pixels(model.model.vision_tower, batch)
    if labels:
        given["labels"] = torch.cat([torch.full_like(ids[:, : 1 + tokens], -100), words], dim=1)
    return given
