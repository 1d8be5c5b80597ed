"""What a model folder does on held-out scenes, scene by scene: what the claims are told from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.batch import encode, extend
from core.lmm import LMM, load_lmm
from core.pipeline import phrase_maps
from core.prompts import render_prompt
from embedded.claims.sinks import cell_at, concentration, norm_ratios, object_cells
from embedded.evaluate import Described, count_scene, described_scenes, scored_phrases
from embedded.scenes.captions import DESCRIBE

SCENES = 120  # the first so many of the split `test`
MAX_NEW_TOKENS = 200
LOOKED_INTO = 24  # scenes whose hidden states and attention to words are measured
COUNTS = (
    "tokens",
    "said",
    "true",
    "right",
    "places",
    "places_right",
    "phrases",
    "hits",
    "raw_hits",
    "first",
    "first_hits",
)
SPREAD = ("visual", "top1", "top5", "ratio", "steady", "registered")  # shares, and one ratio
FIELDS = (*COUNTS, *SPREAD, "cell", "off_objects", "registers", "raw_on_register", "on_register")


def claims_settings(*, scenes: int = SCENES, seed: int = 0, max_new_tokens: int = MAX_NEW_TOKENS) -> dict[str, Any]:
    """What all models of one record have in common."""
    return {"split": "test", "scenes": scenes, "seed": seed, "max_new_tokens": max_new_tokens, "geometry": "pad"}


def measure_model(
    folder: str | Path | LMM, nlp: Any, settings: Mapping[str, Any], *, prompt: str = DESCRIBE, batch: int = 8
) -> dict[str, Any]:
    """One model's answers to `prompt` on the scenes of `settings`.

    Args:
        folder: of the model, or the model itself, loaded with the geometry of the settings.
        nlp: finds the phrases.
        settings: see `claims_settings`.
        prompt: that asks for a description; "" for a model that describes a picture without words.
        batch: scenes that are answered together.

    Returns:
        `prompt`; `scenes`: each of `FIELDS` to its values, one for each scene; `layers`: largest and first hidden
        states, see `look_inside`; `example`: the maps of one phrase (`example_maps`) of the answer in which equation 3
        moves most points away from register-like cells, and among equal ones a point farthest.
    """
    lmm = folder if isinstance(folder, LMM) else load_lmm(folder, geometry=settings["geometry"])
    rows, inside, best = [], [], ((-np.inf, 0.0), {})
    described_all = described_scenes(
        lmm, None, nlp, scenes=settings["scenes"], seed=settings["seed"], prompt=prompt,
        max_new_tokens=settings["max_new_tokens"], batch=batch,
    )  # fmt: skip
    for index, described in enumerate(described_all):
        rows.append(measure_scene(described))
        if index < LOOKED_INTO:
            inside.append(look_inside(lmm, described, prompt))
        found = example_maps(described)
        if found:
            moved = rows[-1]["raw_on_register"] - rows[-1]["on_register"]
            rank = (moved, float(np.hypot(*np.subtract(found["point"], found["raw_point"]))))
            best = max(best, (rank, {"index": index, **found}), key=lambda each: each[0])
    layers = {name: np.mean([each[name] for each in inside], axis=0).round(3).tolist() for name in inside[0]}
    fields = {name: [_rounded(row[name]) for row in rows] for name in FIELDS}
    return {"prompt": prompt, "scenes": fields, "layers": layers, "example": best[1]}


def measure_scene(described: Described) -> dict[str, float | int]:
    """`FIELDS` of one scene: the counts of `embedded.evaluate.count_scene`, how the attention is spread, the number of
    `registers`, and how many phrases' points lie in one of them, without equation 3 and with it.
    """
    counts, generation = count_scene(described), described.generation
    view = described.grounded.view
    row: dict[str, float | int] = {name: int(counts[name]) for name in COUNTS}
    row["tokens"] = len(generation.token_ids)
    union = np.any([thing.mask for thing in described.scene.objects], axis=0)
    spread = concentration(generation.attention, object_cells(union, view, generation.attention.shape[1]))
    row |= {name: getattr(spread, name) for name in SPREAD}
    row |= {"cell": spread.cell, "off_objects": int(spread.off_objects), "registers": int(spread.registers.sum())}
    numbers = [number for number, _ in scored_phrases(described)]
    for name, grounding in (("raw_on_register", described.plain), ("on_register", described.grounded)):
        cells = [cell_at(tuple(grounding.points[number].tolist()), view) for number in numbers]
        row[name] = int(spread.registers[cells].sum()) if cells else 0
    return row


@torch.no_grad()
def look_inside(lmm: LMM, described: Described, prompt: str) -> dict[str, list[float]]:
    """One pass over prompt and answer: by layer, `largest` and `first` hidden states (`sinks.norm_ratios`), and shares
    of the answer's attention, mean over layers and heads: on the sequence's first token, on the prompt's most attended
    word, on all visual tokens.
    """
    text = render_prompt(prompt, lmm.family)
    batch = encode(lmm.family, [described.scene.image], [text], many=False)
    inputs, columns = extend(batch, [described.generation.token_ids], lmm.family)
    kept = lmm.model.config.text_config._attn_implementation
    lmm.model.set_attn_implementation({"text_config": "eager"})
    try:
        made = lmm.model(**inputs, use_cache=False, output_hidden_states=True, output_attentions=True)
    finally:
        lmm.model.set_attn_implementation({"text_config": kept})
    largest, first = norm_ratios(torch.cat(made.hidden_states).float(), columns[0])
    rows = slice(batch.length - 1, -1)
    share = torch.stack([layer[0, :, rows].float().mean(dim=(0, 1)) for layer in made.attentions]).mean(0)
    words = share[: batch.length].clone()
    words[columns[0]] = 0
    shares = {"first_token": share[0], "word": words.max(), "visual": share[columns[0]].sum()}
    return {"largest": largest.tolist(), "first": first.tolist(), **{key: [float(v)] for key, v in shares.items()}}


def example_maps(described: Described) -> dict[str, Any] | None:
    """The maps of one phrase of an answer: the phrase whose points with and without equation 3 are farthest apart.

    Returns:
        `text` (of the answer), `phrase`, `mean` (of all tokens), `raw`, `normalised` (the phrase's maps), each
        h x w, and the points `raw_point` and `point`; None where no phrase names an object.
    """
    numbers = [number for number, _ in scored_phrases(described)]
    if not numbers:
        return None
    apart = (described.grounded.points - described.plain.points).norm(dim=-1)[numbers]
    number = numbers[int(apart.argmax())]
    generation, phrase = described.generation, described.grounded.phrases[number]
    view = described.grounded.view

    def grid(values: Tensor) -> list[list[float]]:
        return [[round(float(value), 5) for value in row] for row in values[view.index]]

    raw, normalised = (
        phrase_maps(generation, [phrase], options=each.options)[0] for each in (described.plain, described.grounded)
    )
    points = {"raw_point": described.plain.points[number], "point": described.grounded.points[number]}
    return {
        "text": generation.text,
        "phrase": phrase.text,
        "mean": grid(generation.attention.mean(0)),
        "raw": grid(raw),
        "normalised": grid(normalised),
        **{name: point.tolist() for name, point in points.items()},
        "box": list(view.box),
    }


def _rounded(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.4g}")
