"""Model cards of the embedded LLaVA, DiffLMM and SAM: data, recipe, seed and measured results, beside the weights."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.weights import KINDS
from embedded import evaluate
from embedded.encoder_study.two_stages import STAGE1, STAGE2
from embedded.recipes.autoencoder import AutoencoderRecipe
from embedded.recipes.clip import VisionRecipe
from embedded.recipes.diffusion import DiffusionRecipe
from embedded.recipes.language_model import ReaderRecipe
from embedded.recipes.llava import LmmRecipe
from embedded.recipes.sam import SamRecipe
from embedded.recipes.shapes import ShapeRecipe
from embedded.scenes.captions import DESCRIBE
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS, GROUNDS, TEXTURES

DATA = (
    f"Procedural scenes (`embedded/scenes/scenes.py`): one to four of {len(CATEGORIES)} glyph silhouettes "
    f"({', '.join(CATEGORIES)}) in {len(COLOURS)} colours on {len(TEXTURES)} textures in {len(GROUNDS)} hues, with a "
    "description and questions written by rules. Splits draw from separate random streams."
)
CLAIMS = ("<!-- claims: `python -m analysis.claims.cards` -->", "<!-- end of claims -->")


def write_cards(weights: Path, *, scenes: int, kinds: tuple[str, ...] = KINDS) -> None:
    """Measures the models in `weights` on held-out scenes and writes `README.md` and `measured.json` beside each.

    Args:
        weights: folder of the models; kinds that are not in it are left out.
        scenes: the first so many of the split `test`.
        kinds: whose cards are written; the spaCy pipeline's is written where it is trained.
    """
    from core.lmm import load_lmm
    from core.masks import load_segmenter
    from core.phrases import load_nlp

    segmenter, nlp = load_segmenter(str(weights / "sam")), load_nlp(str(weights / "en"))
    if "sam" in kinds:
        measured = evaluate.measure_sam(segmenter, scenes=scenes)
        _write(weights / "sam", _sam_card(measured), measured)
    cards = {"llava": _llava_card, "llava_two_stages": _two_stages_card, "difflmm": _difflmm_card}
    for kind, describe in cards.items():
        if kind in kinds and (weights / kind).is_dir():
            lmm = load_lmm(weights / kind, geometry="pad")
            measured = evaluate.measure_llava(lmm, segmenter, nlp, scenes=scenes)
            _write(weights / kind, describe(measured, lmm), measured)


def _llava_card(measured: dict[str, float | int], lmm: Any) -> str:
    return f"""# Embedded LLaVA

A small `LlavaForConditionalGeneration` ({_sizes(lmm)} parameters) that describes this repository's own scenes. It shows
the method on a laptop; it knows nothing beyond these scenes, and its numbers say nothing about LLaVA-1.5.

**Data.** {DATA} Text is the only supervision: no mask, box or point was seen.

**Recipe.** `python -m embedded.train --only vision llava` (`embedded/recipes/clip.py`, `embedded/recipes/llava.py`).
The CLIP vision encoder is pre-trained from the captions' words as tags of the whole picture (multiple-instance
learning over patches), last with what they say of places, then frozen; projector and Llama are trained together, from
random weights, on descriptions and questions. The LLaVA to compare DiffLMM with is `llava_two_stages`, which had the
same training as DiffLMM.

Vision encoder: `{asdict(VisionRecipe())}`

Projector and Llama: `{asdict(LmmRecipe())}`

{_measured(measured)}
"""


def _two_stages_card(measured: dict[str, float | int], lmm: Any) -> str:
    return f"""# Embedded LLaVA in two stages

The counterpart of the embedded DiffLMM: the embedded LLaVA's frozen CLIP ({_sizes(lmm)} parameters) in a LLaVA that had
DiffLMM's training, and nothing more. The default embedded LLaVA was trained longer, in one stage, and is the better
model. Weights are stored in float16.

**Data.** {DATA} Text is the only supervision: no mask, box or point was seen.

**Recipe.** `python -m embedded.train --only vision diffusion reader difflmm` (with DiffLMM). {TWO_STAGES}

{_stages()}

{_measured(measured)}
"""


def _difflmm_card(measured: dict[str, float | int], lmm: Any) -> str:
    return f"""# Embedded DiffLMM (SD + CLIP)

The embedded LLaVA with the paper's diffusion visual encoder ({_sizes(lmm)} parameters): one noised step of a small
latent diffusion model, conditioned by an implicit captioner, beside CLIP, plus positional encodings (equation 4). It
was trained on this repository's own scenes; its numbers say nothing about the paper's DiffLMM. Weights are stored in
float16.

**Data.** {DATA} Text is the only supervision of the LMM: no mask, box or point was seen.

**Recipe.** `python -m embedded.train --only vision diffusion reader difflmm`. The VAE
(`embedded/recipes/autoencoder.py`) and the text-conditioned U-Net (`embedded/recipes/diffusion.py`) learn to paint the
scenes, CLIP is the embedded LLaVA's; all three are then frozen. The features of the U-Net's second up block were
aligned with those of a small encoder that taught itself shapes, without labels, captions or CLIP
(`embedded/recipes/shapes.py`, `embedded/recipes/alignment.py`). {TWO_STAGES} The captioner and the positional encodings
learn in both stages.

VAE: `{asdict(AutoencoderRecipe())}`

U-Net: `{asdict(DiffusionRecipe())}`

What its features are aligned with: `{asdict(ShapeRecipe())}`

{_stages()}

{_measured(measured)}
"""


TWO_STAGES = (
    "The language model (`embedded/recipes/language_model.py`) is pre-trained on text alone. Stage 1 trains the "
    "projector on captions with the language model frozen, stage 2 trains the language model as well, on descriptions "
    "and questions (`embedded/encoder_study/two_stages.py`); LLaVA and DiffLMM see the same data in the same order for "
    "the same steps. In stage 2 names are swapped for others in a share of the answers that are read; what is learnt "
    "there is the right name wherever one is said again (`embedded/encoder_study/word_swaps.py`), so that the language "
    "model does not copy from its own words what it can see."
)


def _stages() -> str:
    recipes = {"Language model": ReaderRecipe(), "Stage 1": STAGE1, "Stage 2": STAGE2}
    return "\n\n".join(f"{name}: `{asdict(recipe)}`, seed 0" for name, recipe in recipes.items())


def _sizes(lmm: Any) -> str:
    inner = lmm.model.model
    tower = inner.vision_tower
    parts = {"vision encoder": tower, "projector": inner.multi_modal_projector, "language model": inner.language_model}
    if hasattr(tower, "unet"):
        named = {"VAE's encoder": tower.vae, "U-Net up to its second up block": tower.unet, "CLIP": tower.clip}
        named |= {"implicit captioner": tower.captioner, "positional encodings": tower.positions}
        parts = named | {name: part for name, part in parts.items() if part is not tower}
    return ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in parts.items())


def _measured(measured: dict[str, float | int]) -> str:
    ratio = measured["point_accuracy"] / max(measured["random_point"], 1e-9)
    rows = [
        ("(colour, category) pairs named: precision", _percent(measured["pair_precision"])),
        ("(colour, category) pairs named: recall", _percent(measured["pair_recall"])),
        ("scenes with exactly the right pairs", _percent(measured["all_pairs_right"])),
        ("places told right, of objects that are there", _percent(measured["places_right"])),
        ("point accuracy (PAcc), normalised (equation 3)", _percent(measured["point_accuracy"])),
        ("PAcc where an answer names a category for the first time", _percent(measured["point_accuracy_first"])),
        ("PAcc where it names the category again", _percent(measured["point_accuracy_again"])),
        ("point accuracy (PAcc), not normalised", _percent(measured["point_accuracy_raw"])),
        ("point accuracy of a random point on the same phrases", _percent(measured["random_point"])),
        ("normalised PAcc over random", f"{ratio:.1f} x"),
        ("mean IoU of the phrases' masks (embedded SAM, last mask)", f"{measured['mask_iou']:.3f}"),
    ]
    return f"""**Measured** on the first {measured["scenes"]} scenes of the split `test` (seed 0), {measured["phrases"]}
phrases whose head noun is a category in the scene, images padded to a square, greedy decoding, prompt "{DESCRIBE}",
{_versions()}:

{_table(rows)}

**Limits.** Read "on the left side of the image" in an answer with the row "places told right" in mind. Of several
objects it sometimes leaves one out or names one twice."""


def _sam_card(measured: dict[str, float | int]) -> str:
    rows = [
        (f"mean IoU of mask {number} with the object", f"{measured[f'iou_mask_{number}']:.3f}") for number in range(3)
    ]
    rows += [
        ("mean IoU of the mask with the best predicted IoU", f"{measured['iou_best_scored']:.3f}"),
        ("objects whose last mask has IoU above 0.75", _percent(measured["share_last_above_0.75"])),
    ]
    return f"""# Embedded SAM

segment-anything's own `Sam` at small size, class-agnostic. Like the original it is supervised by masks, here those of
the scenes; it is the only part of the embedded family that sees masks.

**Data.** {DATA}

**Recipe.** `python -m embedded.train --only sam` (`embedded/recipes/sam.py`): `{asdict(SamRecipe())}`
Prompts in training are points (70 %), shaken boxes (15 %), points with a rough mask (15 %). Outputs: 0 the painted
part under the point, 1 and 2 the whole object (the original's last mask is its largest, too).

**Measured** with one random point inside each of {measured["objects"]} objects of the first {measured["scenes"]} scenes
of the split `test` (seed 0), {_versions()}:

{_table(rows)}

**Limits.** Drawn scenes only. Of points beside all objects it has seen few (a share of {SamRecipe().background} in the
second half of the training); for them it returns the background or nothing.
"""


def put_claims(card: str, claims: str) -> str:
    """A card with its account of the paper's claims, at the end; instead of the one that it has, if any."""
    first, last = CLAIMS
    return f"{card.partition(first)[0].rstrip()}\n\n{first}\n\n{claims.strip()}\n\n{last}\n"


def _claims(card: Path) -> str:
    """The account of the claims that a card has; empty where it has none."""
    text = card.read_text() if card.is_file() else ""
    return text.partition(CLAIMS[0])[2].partition(CLAIMS[1])[0]


def _write(directory: Path, card: str, measured: dict[str, float | int]) -> None:
    file = directory / "README.md"
    told = _claims(file)
    file.write_text(put_claims(card, told) if told else card)
    (directory / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _versions() -> str:
    import transformers

    return f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, {platform.machine()} CPU"
