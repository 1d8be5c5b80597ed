"""Tiny random Cambrian-1 checkpoints in the published layout, name by name as its authors' code writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tiny_models import _clip, _llama, _train
from tiny_vicuna import Pieces, tiny_vicuna
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WIDTH = 32  # of the aggregator: 16 heads of 2
TOWERS = {  # name: (channels, features)
    "siglip/CLIP-ViT-SO400M-14-384": (24, 64),
    "openai/clip-vit-large-patch14-336": (32, 64),
    "facebook/dinov2-giant-res126": (40, 64),
    "clip-convnext-XXL-multi-stage-res256": (24 + 32 + 48 + 64, 1024),
}


def tiny_cambrian(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """8 x 8 cells; pictures of 126 (SigLIP), 112 (CLIP), 126 (DINOv2) and 256 px (ConvNeXt, 4 x 4 features a cell).

    Args:
        changes: of config.json; `llama_3=False` for a tokenizer like Vicuna's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    llama_3 = changes.pop("llama_3", True)
    text = {"num_hidden_layers": 4, "num_key_value_heads": 2}
    if llama_3:
        tokenizer = llama_3_tokenizer()
        tokenizer.save_pretrained(directory)
        text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
        text = _llama(len(tokenizer), **text)
    else:
        for file in tiny_vicuna(directory / "vicuna").glob("*token*"):
            file.rename(directory / file.name)
        text = _llama(Pieces(directory / "tokenizer.model").size, **text)
    released = {
        "architectures": ["CambrianLlamaForCausalLM"],
        "model_type": "cambrian_llama",
        "connector_depth": 2,
        "connector_only": False,
        "image_aspect_ratio": "pad",
        "image_position": 91,
        "image_token_len": 64,
        "mm_projector_type": "sva",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower_aux_list": list(TOWERS),
        "mm_vision_tower_aux_token_len_list": [length for _, length in TOWERS.values()],
        "num_of_vision_sampler_layers": 2,
        "num_query_group": 1,
        "query_num_list": [64],
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "start_of_vision_sampler_layers": 0,
        "stride_of_vision_sampler_layers": 2,
        "torch_dtype": "float32",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "vision_hidden_size": WIDTH,
    }
    released = {k: v for k, v in text.items() if k != "model_type"} | released | changes
    (directory / "config.json").write_text(json.dumps(released))
    sampling = {
        "temperature": 0.9,
        "top_p": 0.6,
        "eos_token_id": text["eos_token_id"],
    }  # without do_sample, as Vicuna's
    (directory / "generation_config.json").write_text(json.dumps(sampling))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(_weights(released), directory / "model.safetensors", metadata={"format": "pt"})
        _towers(directory / "towers")
    return directory


def llama_3_tokenizer() -> Any:
    """Byte-level BPE with Llama-3's markers, which writes no first token by itself."""
    vocab, merges = _train(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), [], 500)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    markers = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend.add_special_tokens(markers)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=markers[0], eos_token=markers[-1])


def _weights(released: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The language model's and the aggregator's."""
    text = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in released.items() if k not in ("model_type", "torch_dtype")})
    )
    weights = {name: _random(name, value.shape) for name, value in text.state_dict().items()}
    sides = [int(length**0.5) for _, length in TOWERS.values()]
    hidden = released["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "vision_query": (released["num_query_group"], WIDTH),
        "image_newline": (hidden,),
    }
    shapes |= _linear("mm_projector.0", WIDTH * released["num_query_group"], hidden)
    shapes |= _linear("mm_projector.2", hidden, hidden)
    for number, (channels, _) in enumerate(TOWERS.values()):
        shapes |= _linear(f"mm_projector_aux_{number}.0", channels, WIDTH)
        shapes |= _linear(f"mm_projector_aux_{number}.2", WIDTH, WIDTH) | _norm(f"mm_projector_aux_{number}.3")
    for group, count in enumerate(released["query_num_list"]):
        windows = [side // int(count**0.5) for side in sides]
        shapes |= _sampler(f"vision_sampler_{group}", WIDTH, windows, released["connector_depth"])
    if not released["connector_only"]:
        windows = [side // int(released["image_token_len"] ** 0.5) for side in sides]
        for number in range(released["num_of_vision_sampler_layers"]):
            shapes |= _sampler(f"vision_sampler_layers.{number}", hidden, windows, 1)
    return weights | {f"model.{name}": _random(name, shape) for name, shape in shapes.items()}


def _sampler(name: str, query: int, windows: list[int], depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (f"{name}.layers.{index}" for index in range(depth)):
        shapes |= _norm(f"{layer}.norm") | {f"{layer}.proj_context.weight": (WIDTH, WIDTH)}
        shapes |= {
            f"{layer}.proj_in.weight": (WIDTH, query + WIDTH),
            f"{layer}.proj_out.linear_1.weight": (WIDTH, WIDTH),
        }
        shapes |= {
            f"{layer}.proj_out.linear_2.weight": (query, WIDTH),
            f"{layer}.cross_attn.o_proj.weight": (WIDTH,) * 2,
        }
        kinds = ["q_proj", *(f"{kind}_proj_{number}" for number in range(len(windows)) for kind in "kv")]
        for kind in kinds:
            shapes |= _norm(f"{layer}.cross_attn.{kind}.0") | {f"{layer}.cross_attn.{kind}.1.weight": (WIDTH, WIDTH)}
        shapes |= {f"{layer}.pos_embed_{i}": (window**2, WIDTH) for i, window in enumerate(windows) if window > 1}
    return shapes


def _linear(name: str, inner: int, outer: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _random(name: str, shape: Any) -> torch.Tensor:
    """Weights of such a size that pictures, places and words all make a difference."""
    if name.endswith("norm.weight") or (len(shape) == 1 and name.endswith("weight")):
        return 1 + 0.1 * torch.randn(*shape)
    if name.endswith(("q_proj.weight", "k_proj.weight")) and "cross" not in name:
        return 0.3 * torch.randn(*shape)
    if name.endswith(("embed_tokens.weight", "image_newline", "mm_projector.2.weight")):
        return 0.7 * torch.randn(*shape)  # what enters the language model, large beside rounding
    return (0.1 if len(shape) == 1 else shape[-1] ** -0.5 * 0.8) * torch.randn(*shape)


def _towers(folder: Path) -> None:
    names = [name.rpartition("/")[2] for name in TOWERS]
    siglip, clip, dino, convnext = (folder / name for name in names)
    clip_config = CLIPVisionConfig(**{k: v for k, v in _clip(112).items() if k != "model_type"})
    _told_apart(CLIPVisionModel(clip_config)).save_pretrained(clip)
    dino_config = {"image_size": 112, "patch_size": 14, "hidden_size": 40, "num_hidden_layers": 2}
    dino_config |= {"num_attention_heads": 2, "mlp_ratio": 2, "use_swiglu_ffn": True}
    _told_apart(Dinov2Model(Dinov2Config(**dino_config))).save_pretrained(dino)
    args = {"img_size": 126, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = _told_apart(timm.create_model("vit_so400m_patch14_siglip_384", **args))  # timm's own layout, with its head
    siglip.mkdir()
    (siglip / "config.json").write_text(
        json.dumps({"architecture": "vit_so400m_patch14_siglip_384", "model_args": args})
    )
    save_file(model.state_dict(), siglip / "model.safetensors")
    model = _told_apart(timm.create_model("test_convnext", num_classes=0))  # OpenCLIP's, with a text tower
    convnext.mkdir()
    (convnext / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"vision_cfg": {"timm_model_name": "test_convnext"}}})
    )
    state = {f"visual.trunk.{name}": value for name, value in model.state_dict().items()}
    torch.save(state | {"logit_scale": torch.ones(())}, convnext / "open_clip_pytorch_model.bin")


def _told_apart(model: Any) -> Any:
    """Random weights large enough that pictures are told apart behind them."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            fan = weight[0].numel() if "embed" not in name or weight.ndim > 2 else weight.shape[-1]
            torch.nn.init.normal_(weight, std=fan**-0.5)
        elif name.endswith(("gamma", "lambda1")):
            torch.nn.init.constant_(weight, 0.5)
    return model.eval()
