"""Counted floating-point operations of LLaVA and DiffLMM, on the meta device: no weights, no time.

`torch.utils.flop_counter` counts matrix products and convolutions (2 per multiply-add), attention as plain products
without regard to the causal mask, backward passes and what gradient checkpointing computes again. Norms, activations
and the optimiser are not counted, nor is the reading of weights, which is what decoding one token mostly waits for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from difflmm_models import Pair, build, pixels, visual_tokens
from difflmm_tasks import CLAIM, DIFFLMM, LLAVA, WHOLE, prepared, recipe_of, text_tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from core.encoders.features import latents


def count_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per task: operations of one sample with each model, and their ratios to LLaVA's."""
    pair = build(options.sizes, device="meta", dtype=torch.float32)
    rows = [_row("visual encoding", _encoding(pair)), *_parts(pair)]
    if pair.llava is None:
        return rows
    seen = {name: flops(lambda: _visual(model)) for name, model in _with_each_tower(pair)}  # noqa: B023
    for new_tokens in options.new_tokens:
        answer = _answer(pair.llava, visual_tokens(pair), new_tokens, options)
        task = f"generation, {new_tokens} new token{'s' * (new_tokens > 1)}"
        rows.append(_row(task, {name: count + answer for name, count in seen.items()}, CLAIM))
    for model in (pair.llava, pair.difflmm):
        prepared(model, recipe_of(1, options), options)
    learnt = {name: flops(lambda: _visual_step(model)) for name, model in _with_each_tower(pair)}  # noqa: B023
    for stage in (1, 2):
        language = _language_step(pair.llava, visual_tokens(pair), stage, options)
        counts = {name: count + language for name, count in learnt.items()}
        rows.append(_row(f"training step, stage {stage}", counts, CLAIM))
    return rows


def flops(run: Callable[[], Any]) -> int:
    """Operations that a run counts."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _row(task: str, counts: dict[str, int], claim: str = "") -> dict[str, Any]:
    ratios = {name: count / counts[LLAVA] for name, count in counts.items() if LLAVA in counts}
    return {"task": task, "flops": counts, "ratio": ratios, "claim": claim}


def _encoding(pair: Pair) -> dict[str, int]:
    with torch.no_grad():
        return {name: flops(lambda tower=tower: tower(pixels(tower, 1))) for name, tower in _towers(pair).items()}


def _towers(pair: Pair) -> dict[str, Any]:
    return {LLAVA: pair.clip, DIFFLMM: pair.encoder, WHOLE: pair.whole}


@torch.no_grad()
def _parts(pair: Pair) -> list[dict[str, Any]]:
    """What DiffLMM's encoding is made of."""
    encoder = pair.encoder
    picture = pixels(encoder, 1)
    noisy = latents(encoder.vae, picture, None)
    width = encoder.config.unet_config["cross_attention_dim"]
    words = torch.empty(1, visual_tokens(pair), width, device="meta")
    step = encoder.config.noise_step
    vae = flops(lambda: latents(encoder.vae, picture, None))
    unet, whole = (
        flops(lambda unet=one.unet: unet(noisy, step, encoder_hidden_states=words)) for one in (encoder, pair.whole)
    )
    return [_row("  its VAE", {DIFFLMM: vae, WHOLE: vae}), _row("  its U-Net", {DIFFLMM: unet, WHOLE: whole})]


def _with_each_tower(pair: Pair) -> Iterator[tuple[str, Any]]:
    """LLaVA, DiffLMM, and DiffLMM with the whole U-Net in its tower."""
    yield LLAVA, pair.llava
    yield DIFFLMM, pair.difflmm
    tower, cut = pair.encoder, pair.encoder.unet
    tower.unet = pair.whole.unet
    yield WHOLE, pair.difflmm
    tower.unet = cut


@torch.no_grad()
def _visual(model: Any) -> None:
    """From a picture to the language model's visual tokens."""
    model.model.get_image_features(pixel_values=pixels(model.model.vision_tower, 1))


def _visual_step(model: Any) -> None:
    """The same with gradients: of the projector, and through the U-Net to the implicit captioner."""
    found = model.model.get_image_features(pixel_values=pixels(model.model.vision_tower, 1)).pooler_output
    torch.stack(list(found)).sum().backward()


@torch.no_grad()
def _answer(model: Any, tokens: int, new_tokens: int, options: argparse.Namespace) -> int:
    """Prefill of the language model, and one step for each token after the first."""
    length = 1 + tokens + options.prompt_tokens
    prefill = flops(lambda: _language(model, length, logits_to_keep=1))
    # attention grows linearly with what is cached, so twice the mean step is the first and the last together
    ends = (length, length + max(new_tokens - 2, 0))
    steps = [flops(lambda: _language(model, 1, past_key_values=_cache(model, end))) for end in ends]  # noqa: B023
    return prefill + (new_tokens - 1) * sum(steps) // 2


def _language_step(model: Any, tokens: int, stage: int, options: argparse.Namespace) -> int:
    """Forward and backward of the language model, down to the visual tokens; in stage 2 with LoRA."""
    with torch.device("meta"):
        network = prepared(model, recipe_of(stage, options), options)
    length = 1 + tokens + text_tokens(stage, options)
    labels = torch.zeros(1, length, dtype=torch.long, device="meta")
    return flops(lambda: _language(network, length, labels=labels, use_cache=False).loss.backward())


def _language(network: Any, length: int, *, past_key_values: Any = None, **options: Any) -> Any:
    """The language model on `length` embeddings; on meta it cannot look whether it needs a mask, so it is given one."""
    keys = length + (0 if past_key_values is None else past_key_values.get_seq_length())
    width = network.config.get_text_config().hidden_size
    return network(
        inputs_embeds=torch.empty(1, length, width, device="meta").requires_grad_(torch.is_grad_enabled()),
        attention_mask=torch.ones(1, 1, length, keys, dtype=torch.bool, device="meta"),
        past_key_values=past_key_values,
        **options,
    )


def _cache(model: Any, length: int) -> Any:
    """A cache of `length` positions."""
    text, cache = model.config.get_text_config(), DynamicCache()
    for layer in range(text.num_hidden_layers):
        shape = (1, text.num_key_value_heads, length, text.head_dim)
        cache.update(*(torch.empty(shape, device="meta") for _ in range(2)), layer)
    return cache
