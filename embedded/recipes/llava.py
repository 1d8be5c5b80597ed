"""Recipe of the embedded LLaVA: frozen vision encoder, projector and Llama, trained on scenes and their texts.

Text is the only supervision: next-token cross-entropy on the answers' tokens. No mask, box or point is seen.

Two further recipes, `LONG` and `LONG_PICTURE_FIRST`, learn descriptions as long as LLaVA's. In the second one nothing
stands before the picture, no word and no "<s>", and nothing between it and the description. Attention that has nothing
to look for then finds no word to rest on, but for those of the answer: with softmax it has to rest on visual tokens.

Source: the picture comes first as in PaliGemma (Beyer et al. 2024); of the words that idle attention rests on, Xiao et
al. 2023, "Efficient streaming language models with attention sinks"; of such visual tokens, Darcet et al. 2023,
"Vision transformers need registers", and Kang et al. 2025, "See what you are told: visual attention sink".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from core.prompts import IMAGE
from core.training.templates import IGNORE, Tokens, tokenize
from embedded.recipes.fitting import Fit, fit, training_attention
from embedded.recipes.tokenizer import CHAT_TEMPLATE, PICTURE_FIRST_TEMPLATE, build_processor, train_tokenizer
from embedded.scenes.captions import DESCRIBE, spoken
from embedded.scenes.long_captions import long_caption
from embedded.scenes.pictures import normalise, training_scenes


@dataclass(frozen=True)
class LmmRecipe:
    """Sizes in channels, steps in optimiser steps; `feature_layer` as LLaVA counts (-2: one before the last).

    `long_answers`: the descriptions of `embedded.scenes.long_captions`, with no question behind them. `picture_first`:
    nothing stands before the picture, and the description follows it without a question.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    vocabulary: int = 768
    feature_layer: int = -1
    scenes: int = 24_000
    steps: int = 1_800
    batch: int = 32
    learning_rate: float = 1.5e-3
    save_every: int = 500  # steps between two training states on disk
    seed: int = 0
    long_answers: bool = False
    picture_first: bool = False


LONG = LmmRecipe(long_answers=True, steps=400, learning_rate=8e-4)  # both go on from the embedded LLaVA
LONG_PICTURE_FIRST = LmmRecipe(long_answers=True, picture_first=True, steps=400, learning_rate=8e-4)


def llama_config(recipe: Any, tokenizer: Any) -> Any:
    """The `LlamaConfig` of a recipe with width, layers, heads and mlp."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_llava(recipe: LmmRecipe, encoder, tokenizer):
    """`LlavaForConditionalGeneration` around a trained `CLIPVisionModel`; everything else has random weights."""
    from transformers import LlavaForConditionalGeneration

    from core.encoders.llava import llava_config

    torch.manual_seed(recipe.seed)
    encoder.config.name_or_path = ""  # the shipped configuration names no folder of the machine it was made on
    config = llava_config(
        encoder.config,
        llama_config(recipe, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=recipe.feature_layer,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.model.vision_tower.requires_grad_(False)
    return model


def train(
    recipe: LmmRecipe,
    vision: Path,
    output: Path,
    *,
    workers: int = 1,
    scenes: tuple | None = None,
    start: Path | None = None,
):
    """Trains projector and LLM on the frozen encoder's cached features; writes model and processor to `output`.

    A training state is kept beside the weights every `save_every` steps; a killed run goes on from it.

    Args:
        recipe, vision, output: the recipe, and the folders of the encoder and of the model.
        workers: processes that draw scenes.
        scenes: what `load_scenes` returned, where several recipes share it.
        start: folder of a trained model of the same sizes to go on from; None begins with random weights.
    """
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(vision).eval()
    features, texts = scenes or load_scenes(recipe, vision, workers=workers)
    if recipe.long_answers:
        texts = [(long_caption("train", i, seed=recipe.seed), turns) for i, (_, turns) in enumerate(texts)]
    tokenizer = train_tokenizer(spoken(texts[:4000]), size=recipe.vocabulary, bos=not recipe.picture_first)
    model = build_llava(recipe, encoder, tokenizer)
    if start is not None:
        _take_over(model, tokenizer, start)
    template = PICTURE_FIRST_TEMPLATE if recipe.picture_first else CHAT_TEMPLATE
    build_processor(tokenizer, encoder.config, template=template).save_pretrained(output)
    _fit(model, tokenizer, features, texts, recipe, output)
    model.save_pretrained(output)
    return model.eval()


@torch.no_grad()
def _take_over(model, tokenizer, start: Path) -> None:
    """Another model's weights; of the tables with a row for each token, those of the tokens that both know."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    known = AutoProcessor.from_pretrained(start).tokenizer.get_vocab()
    tokens = [(row, known[token]) for token, row in tokenizer.get_vocab().items() if token in known]
    rows, old = (torch.tensor(each) for each in zip(*tokens, strict=True))
    state, own = LlavaForConditionalGeneration.from_pretrained(start).state_dict(), model.state_dict()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        state[name] = own[name].index_copy(0, rows, state[name][old].to(own[name].dtype))
    model.load_state_dict(state)


def load_scenes(recipe: LmmRecipe, vision: Path, *, workers: int = 1) -> tuple[Float[Tensor, "b k c"], list]:
    """The training scenes' frozen features and their texts, (caption, questions) each."""
    from transformers import CLIPVisionModel

    encoder = CLIPVisionModel.from_pretrained(vision).eval()
    side = encoder.config.image_size
    pixels, _, texts = training_scenes(
        recipe.scenes, side=side, seed=recipe.seed, cache=vision.parent / "scenes.pt", workers=workers
    )
    return cache_features(encoder, pixels, recipe.feature_layer), texts


@torch.no_grad()
def cache_features(encoder, pixels: UInt8[Tensor, "b 3 s s"], layer: int) -> Float[Tensor, "b k c"]:
    """Float16 patch features of one hidden layer for every picture, as LLaVA selects them."""
    out = []
    for start in range(0, len(pixels), 256):
        hidden = encoder(normalise(pixels[start : start + 256]), output_hidden_states=True).hidden_states[layer]
        out.append(hidden[:, 1:].half())
    return torch.cat(out)


def conversation(
    tokenizer, caption: str, turns: tuple, visual_tokens: int, rng: np.random.Generator, *, described: bool = True
) -> Tokens:
    """The description (if `described`) and two of the scene's questions, in the template that it is asked with."""
    chosen = [turns[number] for number in rng.permutation(len(turns))[:2]]
    if described:
        chosen.insert(0, (DESCRIBE, caption))
    return tokenize(tuple(chosen), tokenizer, template=CHAT_TEMPLATE, visual_tokens=visual_tokens)


def sample(
    recipe: LmmRecipe, tokenizer, text: tuple, visual_tokens: int, rng: np.random.Generator, *, described: bool
) -> Tokens:
    """One training sample of a scene's (caption, questions): its description if `described`, or questions."""
    caption, turns = text
    if not recipe.long_answers:
        return conversation(tokenizer, caption, turns, visual_tokens, rng, described=described)
    if described and recipe.picture_first:
        return _described_without_words(tokenizer, caption, visual_tokens)
    template = PICTURE_FIRST_TEMPLATE if recipe.picture_first else CHAT_TEMPLATE
    chosen = ((DESCRIBE, caption),) if described else tuple(turns[i] for i in rng.permutation(len(turns))[:2])
    return tokenize(chosen, tokenizer, template=template, visual_tokens=visual_tokens)


def _described_without_words(tokenizer, caption: str, visual_tokens: int) -> Tokens:
    """The picture, then the description and what ends it, all learnt."""
    text = f"{IMAGE * visual_tokens} {caption}{tokenizer.eos_token}"
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.int64)
    return Tokens(ids, torch.where(torch.arange(len(ids)) >= visual_tokens, ids, IGNORE))


def answer_loss(model, conversations: list[Tokens], features: Tensor) -> Tensor:
    """Cross-entropy on the answers' tokens, given the frozen encoder's features [b, k, c]."""
    ids = _pad([item.ids for item in conversations], model.config.text_config.pad_token_id)
    labels = _pad([item.labels for item in conversations], IGNORE)
    mask = _pad([torch.ones_like(item.ids) for item in conversations], 0)
    embeddings = model.get_input_embeddings()(ids)
    visual = model.model.multi_modal_projector(features)
    place = (ids == model.config.image_token_id)[..., None].expand_as(embeddings)
    embeddings = embeddings.masked_scatter(place, visual.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, use_cache=False
    ).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    return nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), labels[:, 1:][wanted])


def _pad(rows: list[Tensor], value: int) -> Int[Tensor, "b s"]:
    """Rows side by side, filled up on the right to a multiple of 16: a CPU's kernels are made for each new length."""
    length = -(-max(len(row) for row in rows) // 16) * 16
    return torch.stack([nn.functional.pad(row, (0, length - len(row)), value=value) for row in rows])


def _fit(model, tokenizer, features: Tensor, texts: list, recipe: LmmRecipe, output: Path) -> None:
    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        chosen = rng.integers(len(texts), size=recipe.batch)
        described = rng.random() < 0.75  # one kind a batch, so that little is padded
        batch = [
            sample(recipe, tokenizer, texts[number], features.shape[1], rng, described=described) for number in chosen
        ]
        return answer_loss(model, batch, features[torch.from_numpy(chosen)].float())

    model.train()
    implementation = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": training_attention()})
    fit(
        "LLaVA",
        {"model": model},
        loss,
        Fit(recipe.steps, recipe.learning_rate, mixed=True),
        state=output / "training_state.tmp.pt",
        save_every=recipe.save_every,
    )
    model.set_attn_implementation({"text_config": implementation})
