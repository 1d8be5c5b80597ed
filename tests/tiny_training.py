"""Training data of twelve records and a tiny DiffLMM to train on them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from tiny_diffusion import tiny_diffusion, tiny_tower
from tiny_models import LLAVA_CHAT, _llama, llama_tokenizer


def training_data(folder: Path, pictures: dict[str, Image.Image]) -> Path:
    """Twelve records: pictures of several shapes, every third of text only, of one to three turns."""
    (folder / "images").mkdir()
    for name, picture in pictures.items():
        picture.save(folder / "images" / f"{name}.png")
    names, records = sorted(pictures), []
    for number in range(12):
        record = {"id": f"r{number}", "conversations": []}
        for turn in range(1 + number % 3):
            question = "What is in this picture?" if turn == 0 else f"And {'the cup ' * turn}?"
            marked = f"<image>\n{question}" if turn == 0 and number % 3 != 2 else question
            answer = "a red umbrella " * (number % 4) + "and a blue star."
            record["conversations"] += [{"from": "human", "value": marked}, {"from": "gpt", "value": answer}]
        if number % 3 != 2:
            record["image"] = f"{names[number % len(names)]}.png"
        records.append(record)
    (folder / "conversations.json").write_text(json.dumps(records))
    return folder / "conversations.json"


def tiny_difflmm(folder: Path) -> Path:
    """A DiffLMM of 64 px in cells of 16, with a fast tokenizer; its processor pads."""
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    from core.encoders import register_encoders
    from core.encoders.diffusion import DiffusionVisionModel
    from core.encoders.llava import llava_config, llava_processor

    register_encoders()
    encoder = DiffusionVisionModel.from_parts(
        tiny_diffusion(folder / "sd"), tiny_tower(folder / "tower"), image_size=64, patch_size=16, up_block=1
    )
    words = llama_tokenizer()
    text = {key: value for key, value in _llama(len(words)).items() if key != "model_type"}
    config = llava_config(encoder.config, LlamaConfig(**text), image_token_id=words.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    model.save_pretrained(folder / "difflmm")
    llava_processor(encoder.config, words, chat_template=LLAVA_CHAT).save_pretrained(folder / "difflmm")
    return folder / "difflmm"
