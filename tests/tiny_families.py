"""Tiny random checkpoints of the model families beyond those of `tiny_models`, in its manner; two layers each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_models import _clip, _llama, _save, llama_tokenizer, qwen_tokenizer, tiny_qwen2_5_vl

SQUARE = {"height": 56, "width": 56}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}


def words(*tokens: str, **named: str) -> Any:
    """Llama's tokenizer with more tokens; `named` ones become attributes as processors look for them."""
    tokenizer = llama_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens, *named.values()]})
    if named:
        tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def decoder(tokenizer: Any, **options: Any) -> dict[str, Any]:
    """A text configuration with grouped queries; `options` say of which architecture."""
    return _llama(len(tokenizer), num_key_value_heads=2) | options


def vipllava(directory: Path) -> Path:
    tokenizer = llama_tokenizer()
    config = hf.VipLlavaConfig(
        vision_config=_clip(56) | {"num_hidden_layers": 3},
        text_config=decoder(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-1, -2],
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return _save(hf.VipLlavaForConditionalGeneration, config, processor, directory, 0)


def fast_vlm(directory: Path) -> Path:
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    args = {"layers": [1, 1, 1, 1], "embed_dims": [8, 16, 32, 32], "mlp_ratios": [1, 1, 1, 1], "inference_mode": True}
    config = hf.FastVlmConfig(
        vision_config={"architecture": "fastvit_t8", "model_args": args, "hidden_size": 64, "do_pooling": False},
        text_config=decoder(tokenizer, model_type="qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 192}, crop_size={"height": 192, "width": 192}),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
    )
    model = hf.FastVlmForConditionalGeneration.from_pretrained(
        _save(hf.FastVlmForConditionalGeneration, config, processor, directory, 0)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.model.vision_tower.modules():
            if isinstance(module, torch.nn.Conv2d):  # so that pictures are still told apart behind so many of them
                torch.nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(directory)
    return directory


def qwen2_vl(directory: Path) -> Path:
    return qwen(directory, "Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14})


def qwen3_vl(directory: Path) -> Path:
    """Features of its vision tower's first block are added in the decoder's first layer."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return qwen(directory, "Qwen3VL", vision, head_dim=8)


def qwen(directory: Path, kind: str, vision: dict[str, Any], **text: Any) -> Path:
    """A sister of `tiny_qwen2_5_vl`, with its tokenizer and token ids."""
    other = hf.AutoConfig.from_pretrained(tiny_qwen2_5_vl(directory / "other")).to_dict()
    taken = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text_config = {name: value for name, value in other["text_config"].items() if name != "model_type"} | text
    config = getattr(hf, f"{kind}Config")(
        vision_config={"depth": 2, "num_heads": 2} | vision,
        text_config=text_config,
        **{name: other[name] for name in taken},
    )
    size, patch = {"shortest_edge": 56 * 56, "longest_edge": 168 * 168}, vision["patch_size"]
    third = kind.startswith("Qwen3")
    video = hf.Qwen3VLVideoProcessor if third else hf.Qwen2VLVideoProcessor
    processor = (hf.Qwen3VLProcessor if third else hf.Qwen2VLProcessor)(
        image_processor=hf.Qwen2VLImageProcessor(size=size, patch_size=patch),
        video_processor=video(size=size, patch_size=patch),
        tokenizer=qwen_tokenizer(),
    )
    return _save(getattr(hf, f"{kind}ForConditionalGeneration"), config, processor, directory, 0)


def qwen3_vl_moe(directory: Path) -> Path:
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    return qwen(directory, "Qwen3VLMoe", vision | {"patch_size": 16, "deepstack_visual_indexes": [0]}, **experts)


def llava_onevision(directory: Path) -> Path:
    """Tiles of 60 px that patches of 14 px do not fill, and more cells than its "anyres_max_2" allows."""
    tokenizer = words("<video>")
    pinpoints = [[h * 60, w * 60] for h, w in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (2, 3), (3, 2))]
    config = hf.LlavaOnevisionConfig(
        vision_config=SIGLIP | {"image_size": 60},
        text_config=decoder(tokenizer, model_type="qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    size = {"height": 60, "width": 60}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    return _save(hf.LlavaOnevisionForConditionalGeneration, config, processor, directory, 0)


PIXTRAL = TOWER | {"model_type": "pixtral", "image_size": 160, "patch_size": 14, "head_dim": 16}


def pixtral(directory: Path) -> Path:
    tokenizer = words("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.LlavaConfig(
        vision_config=PIXTRAL,
        text_config=decoder(tokenizer, model_type="mistral", head_dim=8, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = hf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})
    processor = hf.PixtralProcessor(image_processor=images, tokenizer=tokenizer, patch_size=14)
    return _save(hf.LlavaForConditionalGeneration, config, processor, directory, 0)


def mistral3(directory: Path) -> Path:
    tokenizer = words("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = hf.Mistral3Config(
        vision_config=PIXTRAL,
        text_config=decoder(tokenizer, model_type="mistral", head_dim=8, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    images = hf.PixtralImageProcessor(size={"longest_edge": 140}, patch_size={"height": 14, "width": 14})
    processor = hf.PixtralProcessor(image_processor=images, tokenizer=tokenizer, patch_size=14, spatial_merge_size=2)
    return _save(hf.Mistral3ForConditionalGeneration, config, processor, directory, 0)


def internvl(directory: Path) -> Path:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = words(**names)
    config = hf.InternVLConfig(
        vision_config=TOWER | {"image_size": [56, 56], "patch_size": [7, 7]},
        text_config=decoder(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=6),
        video_processor=hf.InternVLVideoProcessor(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=16,
    )
    return _save(hf.InternVLForConditionalGeneration, config, processor, directory, 0)


def aya_vision(directory: Path) -> Path:
    """Every other layer of its decoder sees a window."""
    marks = ["START_OF_IMG", "END_OF_IMG", "IMG_PATCH", "IMG_LINE_BREAK"]
    tokenizer = words(*(f"<|{mark}|>" for mark in marks), "TILE_GLOBAL", *(f"TILE_{i}" for i in range(1, 7)))
    windows = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    config = hf.AyaVisionConfig(
        vision_config=SIGLIP | {"patch_size": 7},
        text_config=decoder(tokenizer, model_type="cohere2", **windows),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=6),
        tokenizer=tokenizer,
        patch_size=7,
        img_size=56,
        downsample_factor=2,
    )
    return _save(hf.AyaVisionForConditionalGeneration, config, processor, directory, 0)


def idefics3(directory: Path) -> Path:
    tokenizer, options = _idefics("Idefics3")
    processor = hf.Idefics3Processor(**options, image_processor=hf.Idefics3ImageProcessor(**_SPLIT))
    return _save(hf.Idefics3ForConditionalGeneration, tokenizer, processor, directory, 0)


def smolvlm(directory: Path) -> Path:
    config, options = _idefics("SmolVLM")
    video = hf.SmolVLMVideoProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 56})
    images = hf.SmolVLMImageProcessor(**_SPLIT)
    processor = hf.SmolVLMProcessor(**options, image_processor=images, video_processor=video)
    return _save(hf.SmolVLMForConditionalGeneration, config, processor, directory, 0)


_SPLIT = {"size": {"longest_edge": 150}, "max_image_size": {"longest_edge": 56}}


def _idefics(kind: str) -> tuple[Any, dict[str, Any]]:
    places = [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
    tokenizer = words(*marks, *places)
    config = getattr(hf, f"{kind}Config")(
        vision_config=TOWER | {"image_size": 56, "patch_size": 7},
        text_config=decoder(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return config, {"tokenizer": tokenizer, "image_seq_len": 16}


def paligemma(directory: Path, **text: Any) -> Path:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = None
    images = hf.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config=SIGLIP | {"projection_dim": 32},
        text_config=decoder(tokenizer, **({"model_type": "gemma", "head_dim": 8} | text)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return _save(hf.PaliGemmaForConditionalGeneration, config, processor, directory, 0)


def paligemma2(directory: Path) -> Path:
    """Gemma 2 as the decoder: a window in every other layer, capped scores."""
    text = {"model_type": "gemma2", "sliding_window": 12, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    return paligemma(directory, **text)


def gemma3(directory: Path, **images: Any) -> Path:
    """The picture's own tokens attend to each other both ways; a window in every other layer."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = words(**names)
    windows = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    config = hf.Gemma3Config(
        vision_config=SIGLIP | {"patch_size": 7},
        text_config=decoder(tokenizer, model_type="gemma3_text", head_dim=8, query_pre_attn_scalar=8, **windows),
        mm_tokens_per_image=16,
        **{f"{n}_index": tokenizer.convert_tokens_to_ids(token) for n, token in names.items()},
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=SQUARE, **images), tokenizer=tokenizer, image_seq_length=16
    )
    return _save(hf.Gemma3ForConditionalGeneration, config, processor, directory, 0)


def gemma3_pan_and_scan(directory: Path) -> Path:
    return gemma3(
        directory,
        pan_and_scan_min_crop_size=20,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )


def glm46v(directory: Path) -> Path:
    return glm4v(directory, "Glm46V")


def glm4v(directory: Path, kind: str = "Glm4v") -> Path:
    other = hf.AutoConfig.from_pretrained(tiny_qwen2_5_vl(directory / "other")).to_dict()["text_config"]
    tokenizer = qwen_tokenizer()
    names = {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "image_start_token": "<|begin_of_image|>",
        "image_end_token": "<|end_of_image|>",
        "video_start_token": "<|begin_of_video|>",
        "video_end_token": "<|end_of_video|>",
    }
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = getattr(hf, f"{kind}Config")(
        vision_config=VISION
        | {"model_type": "glm4v_vision", "image_size": 56, "spatial_merge_size": 2, "patch_size": 14},
        text_config=other
        | {
            "model_type": "glm4v_text",
            "vocab_size": len(tokenizer),
            "rope_parameters": rope | {"partial_rotary_factor": 1.0},
        },
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    size = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 168 * 168}
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=getattr(hf, f"{kind}ImageProcessor")(size=size),
        video_processor=getattr(hf, f"{kind}VideoProcessor")(size=size),
        tokenizer=tokenizer,
    )
    return _save(getattr(hf, f"{kind}ForConditionalGeneration"), config, processor, directory, 0)


VISION = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}


def cohere2_vision(directory: Path) -> Path:
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = words(**names)
    windows = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    config = hf.Cohere2VisionConfig(
        vision_config=SIGLIP | {"patch_size": 7},
        text_config=decoder(tokenizer, model_type="cohere2", **windows),
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )
    images = hf.Cohere2VisionImageProcessor(size=SQUARE, max_patches=6, patch_size=4)
    processor = hf.Cohere2VisionProcessor(image_processor=images, tokenizer=tokenizer)
    return _save(hf.Cohere2VisionForConditionalGeneration, config, processor, directory, 0)


def ovis2(directory: Path) -> Path:
    """Its visual tokens are mixtures of a table's rows, by the softmax of what the tower says."""
    parts = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = words(*parts)
    ids = tokenizer.convert_tokens_to_ids(parts)
    config = hf.Ovis2Config(
        vision_config={name: value for name, value in TOWER.items() if name != "model_type"}
        | {"image_size": 56, "patch_size": 14, "vocab_size": 64},
        text_config=decoder(tokenizer, model_type="qwen2"),
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:],
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    processor = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=6),
        tokenizer=tokenizer,
        image_seq_length=16,
    )
    return _save(hf.Ovis2ForConditionalGeneration, config, processor, directory, 0)


def gemma4(directory: Path) -> Path:
    """The picture's tokens attend to each other both ways in the windowed layer only."""
    names = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    tokenizer = words("<|video|>", **names)
    windows = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
    small = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0}
    config = hf.Gemma4Config(
        vision_config=TOWER
        | {"patch_size": 6, "head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 64},
        text_config=decoder(
            tokenizer, model_type="gemma4_text", use_bidirectional_attention="vision", **small, **windows
        ),
        audio_config=None,
        **{f"{n}_id": tokenizer.convert_tokens_to_ids(token) for n, token in names.items()},
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(patch_size=6, max_soft_tokens=70),
        video_processor=hf.Gemma4VideoProcessor(patch_size=6, max_soft_tokens=70),
        tokenizer=tokenizer,
    )
    return _save(hf.Gemma4ForConditionalGeneration, config, processor, directory, 0)


def molmo2(directory: Path) -> Path:
    """Crops of 5 x 5 patches, of which one on each side overlaps: odd numbers of patches, pooled two by two."""
    marks = ["<im_start>", "<im_end>", "<low_res_im_start>", "<im_patch>", "<im_col>", "<frame_start>", "<frame_end>"]
    tokenizer = words("<|image|>", "<|video|>", "<im_low>", *marks)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = hf.Molmo2Config(
        vision_config=TOWER | heads | {"image_size": [70, 70], "patch_size": 14},
        adapter_config=heads
        | {"hidden_size": 32, "text_hidden_size": 32, "intermediate_size": 64, "vision_feature_layer": [-1, -2]},
        text_config=decoder(tokenizer, head_dim=8, additional_vocab_size=0, model_type="molmo2_text"),
        image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<im_start>"),
        low_res_image_start_token_id=tokenizer.convert_tokens_to_ids("<low_res_im_start>"),
        image_end_token_id=tokenizer.convert_tokens_to_ids("<im_end>"),
        frame_start_token_id=tokenizer.convert_tokens_to_ids("<frame_start>"),
        frame_end_token_id=tokenizer.convert_tokens_to_ids("<frame_end>"),
    )
    size = {"height": 70, "width": 70}
    processor = hf.Molmo2Processor(
        image_processor=hf.Molmo2ImageProcessor(size=size, overlap_margins=[1, 1], max_crops=6),
        video_processor=hf.Molmo2VideoProcessor(size=size),
        tokenizer=tokenizer,
    )
    return _save(hf.Molmo2ForConditionalGeneration, config, processor, directory, 0)


BUILDERS: dict[str, Callable[[Path], Path]] = {
    builder.__name__: builder
    for builder in (
        vipllava,
        qwen2_vl,
        qwen3_vl,
        llava_onevision,
        internvl,
        paligemma,
        paligemma2,
        gemma3,
        gemma3_pan_and_scan,
        idefics3,
        smolvlm,
        pixtral,
        mistral3,
        aya_vision,
        fast_vlm,
        glm4v,
        glm46v,
        cohere2_vision,
        ovis2,
        gemma4,
        qwen3_vl_moe,
        molmo2,
    )
}
