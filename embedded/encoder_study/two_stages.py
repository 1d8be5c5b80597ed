"""LLaVA's two stages for the embedded models: the same data and steps for every visual encoder.

Stage 1 trains the projector and whatever learns in the encoder (captioner, positional encoding) on captions, with the
language model frozen; stage 2 trains the language model as well, on conversations. Text is the only supervision.

What learns on the visual side and stage 1's template are `core.training`'s; the rest is cut to this size. Frozen
features come from a `FeatureCache` instead of pictures. Stage 2 trains the whole language model instead of LoRA's
weights, and all parts with one learning rate. Its conversations have no system text: two questions, in three of four
batches after the description, and names are swapped in some of the answers that the model reads
(`embedded.encoder_study.word_swaps`). Batches are not grouped by length. The optimiser's settings are those of
`embedded.recipes.fitting`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.atomic import write_atomically
from core.claim import claim, hold, read_object, refuse_other
from core.errors import GroundingError
from core.training.loss_log import FILE, append_loss, rewind
from core.training.stages import visual_parts
from core.training.templates import Tokens, tokenize
from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.variants import build_llava, find_variant
from embedded.encoder_study.word_swaps import WordSwaps, name_ids, swap_words
from embedded.recipes.fitting import Fit, fit, training_attention
from embedded.recipes.llava import answer_loss, conversation
from embedded.scenes.captions import DESCRIBE

log = logging.getLogger(__name__)
VISUAL_TOKENS = 100


@dataclass(frozen=True)
class StageRecipe:
    """What one stage is, for every variant alike; `scenes` are the first of the training split.

    `swaps` say how often the answers that a model reads name other things than they should; None: never.
    """

    stage: int
    scenes: int
    epochs: float = 1.0
    batch: int = 32
    learning_rate: float = 2e-3
    swaps: WordSwaps | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return int(self.scenes * self.epochs) // self.batch


STAGE1 = StageRecipe(1, scenes=7_000)
STAGE2 = StageRecipe(2, scenes=9_600, epochs=4.0, learning_rate=1.5e-3, swaps=WordSwaps())


@dataclass(frozen=True)
class TrainingData:
    """The training scenes' texts, (caption, ((question, answer)...)) each, and their frozen features.

    `held_out` are scenes that no stage trains on; `tags` are each scene's positions in `embedded.scenes.pictures.TAGS`.
    """

    texts: list
    tags: list
    cache: FeatureCache
    held_out: range


def run_stage(
    name: str,
    data: TrainingData,
    output: Path,
    recipe: StageRecipe,
    *,
    seed: int,
    start: Path | None = None,
) -> Path:
    """Trains one stage of one variant; a finished run is left as it is, a killed one goes on.

    Args:
        name: of the variant.
        output: gets `recipe.json`, `losses.jsonl`, `model` and, last, `result.json` with the loss on held-out scenes.
        seed: of the new weights and of the samples, their order and what is asked about them.
        start: stage 1's `output`; stage 2 needs it.

    Returns:
        The folder of the model.

    Raises:
        GroundingError: unknown variant; stage 2 without a start; held-out scenes among the recipe's; `output` holds a
            finished run with other settings or of other parts, or another process trains there.
    """
    variant, result = find_variant(name), output / "result.json"
    told = {key: value for key, value in asdict(recipe).items() if value is not None}
    settings = {"variant": name, "seed": seed, "parts": data.cache.parts.fingerprints(variant), "recipe": told}
    if result.is_file():
        found = read_object(result)
        refuse_other(output, {key: found.get(key) for key in settings}, settings)
        return output / "model"
    if recipe.stage == 2 and start is None:
        raise GroundingError("stage 2 starts from a model of stage 1; give its folder as start")
    if recipe.scenes > data.held_out.start:
        raise GroundingError(f"{recipe.scenes} scenes to train on reach into the held-out ones {data.held_out}")
    claim(output / "recipe.json", settings)
    with hold(output):
        model, processor = build_llava(variant, data.cache.parts, seed=seed)
        if start is not None:
            load_learnt(model, start / "model")
        prepare(model, recipe.stage)
        frozen = data.cache.frozen(variant, range(recipe.scenes))
        _train(model, processor.tokenizer, data.texts, frozen, recipe, output, seed=seed, title=f"{name}, {seed}")
        held_out = data.cache.frozen(variant, data.held_out)
        texts = [data.texts[number] for number in data.held_out]
        loss = held_out_loss(model, processor.tokenizer, texts, held_out, recipe.stage)
        model.set_attn_implementation({"text_config": "sdpa"})
        model.eval().save_pretrained(output / "model")
        processor.save_pretrained(output / "model")
        found = {**settings, "steps": recipe.steps, "held_out_loss": loss}
        write_atomically(result, json.dumps(found, indent=2).encode())
        log.info("%s, seed %d, stage %d: held-out loss %.4f", name, seed, recipe.stage, loss)
    return output / "model"


def prepare(model: Any, stage: int) -> None:
    """Makes trainable what learns in a stage: in both the visual parts, in stage 2 the language model, too."""
    model.requires_grad_(False)
    for part in visual_parts(model):
        model.get_submodule(part).requires_grad_(True)
    if stage == 2:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    model.train()
    model.model.vision_tower.eval()
    model.set_attn_implementation({"text_config": training_attention()})


def load_learnt(model: Any, directory: Path) -> None:
    """Loads another stage's weights into a model of the same variant."""
    from transformers import LlavaForConditionalGeneration

    stored = LlavaForConditionalGeneration.from_pretrained(directory)
    model.load_state_dict(stored.state_dict())


def visual_features(model: Any, frozen: dict[str, Tensor]) -> Tensor:
    """What the projector gets, [b, k, c], from the frozen parts' features; learnable parts of the encoder are run."""
    tower = model.model.vision_tower
    frozen = {name: value.float() for name, value in frozen.items()}
    return tower.from_frozen(frozen).last_hidden_state if hasattr(tower, "from_frozen") else frozen["features"]


def caption_sample(tokenizer: Any, caption: str) -> Tokens:
    """Stage 1's sample: the picture, then the caption, as the "plain" template has it."""
    return tokenize(((DESCRIBE, caption),), tokenizer, template="plain", visual_tokens=VISUAL_TOKENS)


def sample(tokenizer: Any, text: tuple, stage: int, rng: np.random.Generator, *, described: bool) -> Tokens:
    """One training sample of a scene's texts."""
    if stage == 1:
        return caption_sample(tokenizer, text[0])
    return conversation(tokenizer, *text, VISUAL_TOKENS, rng, described=described)


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any, texts: list, frozen: dict[str, Tensor], stage: int) -> float:
    """Mean loss per answer token on scenes that were not trained on, in float32, the same samples for every model."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(texts), 50):
        rng = np.random.default_rng(start)
        rows = [sample(tokenizer, text, stage, rng, described=True) for text in texts[start : start + 50]]
        number = sum(int((row.labels[1:] >= 0).sum()) for row in rows)
        features = visual_features(model, {name: value[start : start + 50] for name, value in frozen.items()})
        total += answer_loss(model, rows, features).item() * number
        tokens += number
    return total / tokens


def _train(
    model: Any,
    tokenizer: Any,
    texts: list,
    frozen: dict[str, Tensor],
    recipe: StageRecipe,
    output: Path,
    *,
    seed: int,
    title: str,
) -> None:
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    learnt = nn.ModuleList([model])
    epochs: dict[int, Tensor] = {}
    kinds = name_ids(tokenizer)

    def loss(step: int) -> Tensor:
        epoch, first = divmod(step * recipe.batch, recipe.scenes // recipe.batch * recipe.batch)
        if epoch not in epochs:
            epochs.clear()
            generator = torch.Generator().manual_seed(1_000 * seed + epoch)
            epochs[epoch] = torch.randperm(recipe.scenes, generator=generator)
        chosen = epochs[epoch][first : first + recipe.batch]
        rng = np.random.default_rng([seed, recipe.stage, step])
        described = rng.random() < 0.75  # one kind a batch, so that little is padded
        rows = [sample(tokenizer, texts[i], recipe.stage, rng, described=described) for i in chosen.tolist()]
        if recipe.swaps:
            rows = [swap_words(row, kinds, rng, recipe.swaps) for row in rows]
        return answer_loss(model, rows, visual_features(model, {key: part[chosen] for key, part in frozen.items()}))

    state = output / "state.tmp.pt"
    if state.is_file():
        rewind(output / FILE, torch.load(state, weights_only=True)["step"])
    else:
        (output / FILE).unlink(missing_ok=True)
    fit(
        f"{title}, stage {recipe.stage}",
        {"model": learnt},
        loss,
        Fit(recipe.steps, recipe.learning_rate, weight_decay=0.0, warmup=0.03, mixed=True),
        state=state,
        parameters=parameters,
        after=lambda step, value: append_loss(output / FILE, {"step": step, "loss": value}),
    )
