"""Tiny random checkpoints of the real architectures and tokenizers, written by `save_pretrained`, without downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CORPUS = (
    "The image features a red umbrella and a blue star. The umbrella is on the left side of the image, next to it.",
    "Describe the image in detail. What is in this picture? A photo of a cat, an astronaut and a cup of coffee.",
    "USER: ASSISTANT: system user assistant. A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions. There are several people.",
)
LLAVA_CHAT = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama_tokenizer() -> Any:
    """Llama's own class on a vocabulary of this file's words: "▁" for spaces, byte fallback, "<s>" in front."""
    from transformers import LlamaTokenizer

    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _train(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), specials, 640)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, pad_token="<unk>", add_bos_token=True)
    tokenizer.update_post_processor()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = LLAVA_CHAT
    return tokenizer


def qwen_tokenizer() -> Any:
    """Qwen's own class (byte-level BPE) on a vocabulary of this file's words."""
    from transformers import Qwen2Tokenizer

    vocab, merges = _train(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], 600)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    names = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


def _train(model: Any, pre_tokenizer: Any, specials: list[str], size: int) -> tuple[dict[str, int], list]:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    byte_level = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())["model"]
    return content["vocab"], [tuple(merge) for merge in content["merges"]]


def tiny_llava(
    directory: Path,
    *,
    image_size: int = 56,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    image_processor_class: Any = None,
    **processor_options: Any,
) -> Path:
    """LLaVA 1.5: CLIP tower, patches of 14 px, Llama (or another decoder by `text`), a CLIP image processor."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = llama_tokenizer()
    config = LlavaConfig(
        vision_config=_clip(image_size),
        text_config=_llama(len(tokenizer), **(text or {})),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    options = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    image_processor = (image_processor_class or CLIPImageProcessor)(**(options | processor_options))
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    return _save(LlavaForConditionalGeneration, config, processor, directory, seed)


def tiny_llava_next(directory: Path, *, tile: int = 56, seed: int = 0, text: dict[str, Any] | None = None) -> Path:
    """LLaVA-NeXT: tiles of `tile` px in 2 x 2, 1 x 2, 2 x 1, 1 x 3 and 3 x 1."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = llama_tokenizer()
    pinpoints = [[h * tile, w * tile] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config = LlavaNextConfig(
        vision_config=_clip(tile),
        text_config=_llama(len(tokenizer), **(text or {})),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )
    return _save(LlavaNextForConditionalGeneration, config, processor, directory, seed)


def tiny_qwen2_5_vl(directory: Path, *, seed: int = 0) -> Path:
    """Qwen2.5-VL: patches of 14 px merged 2 x 2, windowed vision attention, grouped queries, mrope."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in (
            ("image_token_id", "image_pad"),
            ("video_token_id", "video_pad"),
            ("vision_start_token_id", "vision_start"),
            ("vision_end_token_id", "vision_end"),
        )
    }
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        **ids,
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 168 * 168}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=QWEN_CHAT,
    )
    return _save(Qwen2_5_VLForConditionalGeneration, config, processor, directory, seed)


def _clip(image_size: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "image_size": image_size,
        "patch_size": 14,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }


def _llama(vocab_size: int, **options: Any) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return text | options


def _save(model_class: Any, config: Any, processor: Any, directory: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        for name, weight in model.named_parameters():  # attention that differs from place to place
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.data.normal_(std=0.5 * (32 / weight.shape[1]) ** 0.5)
            elif weight.ndim > 1:
                weight.data.normal_(std=0.1)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def checkpointed(model):
    """Gradient checkpointing by its new name where transformers has it, else by the old one."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
