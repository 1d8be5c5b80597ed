"""Recipe of the embedded language model: a Llama that learns from text alone, as Vicuna does before LLaVA.

What it reads in the picture's place is a heap of words of the scene in random order ("red star gray red star plain
..."); what it learns is to describe the scene and to answer. No picture, and no place of anything, is in this data. So
stage 1 of the two-stage training starts from a model that can use what stands before the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.training.templates import IGNORE
from embedded.recipes.fitting import Fit, fit, training_attention
from embedded.recipes.llava import llama_config
from embedded.recipes.tokenizer import train_tokenizer
from embedded.scenes.captions import DESCRIBE, spoken
from embedded.scenes.pictures import PAIRS, TAGS


@dataclass(frozen=True)
class ReaderRecipe:
    """Sizes in channels, steps in optimiser steps."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 384
    vocabulary: int = 768
    words: tuple[int, int] = (15, 55)  # entries in the heap
    background: tuple[float, float] = (0.3, 0.8)  # share of them that are about the background
    batch: int = 32
    steps: int = 1_000
    learning_rate: float = 1.5e-3
    seed: int = 0


def build_reader(recipe: ReaderRecipe, tokenizer: Any) -> Any:
    """A `LlamaForCausalLM` of the recipe's size with random weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(llama_config(recipe, tokenizer))


def train_reader(recipe: ReaderRecipe, tags: Sequence[Sequence[int]], texts: Sequence[tuple], output: Path) -> Any:
    """Trains tokenizer and language model on the scenes' texts and writes both to `output`.

    Args:
        tags: of each scene, positions in `embedded.scenes.pictures.TAGS`.
        texts: of each scene (caption, ((question, answer)...)).
    """
    tokenizer = train_tokenizer(spoken(texts[:4000]), size=recipe.vocabulary)
    model = build_reader(recipe, tokenizer)
    model.set_attn_implementation(training_attention())

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        plain = rng.random() < 0.4
        chosen = rng.integers(len(texts), size=recipe.batch)
        rows = [lesson(tokenizer, tags[i], *texts[i], rng, recipe, plain=plain) for i in chosen]
        return language_loss(model, rows)

    options = Fit(recipe.steps, recipe.learning_rate, mixed=True)
    fit("language model", {"model": model}, loss, options, state=output / "state.tmp.pt")
    model.set_attn_implementation("sdpa")
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model


def heap(tags: Sequence[int], rng: np.random.Generator, recipe: ReaderRecipe) -> str:
    """Words of a scene in random order: its objects with their colours, its background's colour and texture."""
    words = [TAGS[number] for number in tags]
    things = [word for word in words if word in PAIRS]
    ground = words[-2:]  # TAGS lists textures and grounds last
    weights = rng.uniform(0.4, 1.6, len(things))
    share = rng.uniform(*recipe.background)
    number = int(rng.integers(*recipe.words))
    drawn = [
        str(rng.choice(ground)) if rng.random() < share else str(rng.choice(things, p=weights / weights.sum()))
        for _ in range(number)
    ]
    missing = [thing for thing in things if thing not in drawn]
    drawn += missing
    return " ".join(drawn[place] for place in rng.permutation(len(drawn)))


def lesson(
    tokenizer: Any,
    tags: Sequence[int],
    caption: str,
    turns: Sequence[tuple[str, str]],
    rng: np.random.Generator,
    recipe: ReaderRecipe,
    *,
    plain: bool,
) -> tuple[list[int], list[int]]:
    """Ids and labels: the heap and the caption (`plain`), or the heap and three turns in Vicuna's manner."""
    words = heap(tags, rng, recipe)
    if plain:
        asked = tokenizer(f"{tokenizer.bos_token}{words}", add_special_tokens=False).input_ids
        told = tokenizer(f"{caption}\n", add_special_tokens=False).input_ids
        return asked + told, [IGNORE] * len(asked) + told
    ids, labels = [], []
    some = [(DESCRIBE, caption), *(turns[number] for number in rng.permutation(len(turns))[:2])]
    for number, (question, answer) in enumerate(some[place] for place in rng.permutation(len(some))):
        opening = f"{tokenizer.bos_token}USER: {words}\n" if number == 0 else f"{tokenizer.eos_token}USER: "
        asked = tokenizer(f"{opening}{question} ASSISTANT:", add_special_tokens=False).input_ids[number > 0 :]
        told = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids += asked + told
        labels += [IGNORE] * len(asked) + told
    return ids, labels


def language_loss(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Cross-entropy on the labelled tokens of right-padded rows."""
    length = max(len(ids) for ids, _ in rows)
    pad = model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [IGNORE] * (length - len(row)) for _, row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), labels[:, 1:][wanted])
