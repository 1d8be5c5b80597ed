"""Attend and segment: the one composition of all stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.attention import AGGREGATIONS, NORMALIZATIONS, aggregate, normalize, remove_corners, select_heads, to_grid
from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View, map_to_pixels
from core.images import load_image
from core.masks import MASK_CHOICES, Masks, Segmenter, encode_chosen
from core.phrases import Phrase, find_phrases, pipeline_name
from core.points import PIXELS_AT_ONCE, prompt_points

if TYPE_CHECKING:
    from PIL import Image
    from spacy.language import Language

    from core.lmm import LMM

SAM_PROMPTS = ("point", "mask")
CHOICES = {
    "normalization": NORMALIZATIONS,
    "aggregation": AGGREGATIONS,
    "sam_prompt": SAM_PROMPTS,
    "mask_choice": tuple(MASK_CHOICES),
}


@dataclass(frozen=True, eq=False)
class Grounding:
    """A grounded answer.

    Attributes:
        image_size: (H, W) of the original image.
        generation: the answer and where the model looked.
        phrases: p noun phrases, in the order of the answer.
        maps: float32 [p, k], each phrase's map over all visual tokens (normalised and aggregated).
        points: float32 [p, 2], prompt points (x, y) in pixels of the original image, at pixel centres.
        masks: for each phrase its masks as COCO run-length codes: one, three with mask choice "all", none without a
            segmenter.
        scores: float32 [p, m], Segment Anything's estimate of each mask's IoU.
        settings: every option of `ground` by name, with the segmenter's and the spaCy pipeline's names.
        measured: further tensors by name, see `measure` of `core.run.ground_dataset`.
    """

    image_size: tuple[int, int]
    generation: Generation
    phrases: tuple[Phrase, ...]
    maps: Float[Tensor, "p k"]
    points: Float[Tensor, "p 2"]
    masks: tuple[tuple[dict, ...], ...]
    scores: Float[Tensor, "p m"]
    settings: dict[str, Any]
    measured: Mapping[str, Tensor] = field(default_factory=dict)


def attend_and_segment(
    image: Any,
    prompt: str,
    *,
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Language,
    answer: str | None = None,
    per_head: bool = False,
    row: str = "predicting",
    max_new_tokens: int = 512,
    generation_options: dict[str, Any] | None = None,
    **options: Any,
) -> Grounding:
    """Answer a prompt about an image and ground the answer's noun phrases in pixels.

    Args:
        image: anything `core.images.load_image` opens (path, PIL image, array).
        prompt: the question, or a full prompt that already holds the model's image placeholder.
        lmm: a model from `load_lmm`.
        segmenter: from `load_segmenter`; None stops at the points.
        nlp: from `load_nlp`.
        answer: ground this text (teacher-forced) instead of generating one.
        per_head: keep the maps of every layer and head in the generation.
        row: "predicting" (the paper's) or "self", the attention row read for each token.
        max_new_tokens: longest answer.
        generation_options: further options of `lmm.generate` (`system`, `do_sample`, ...).
        **options: those of `ground`, or `**PRESETS[name]` of `core.presets`.

    Raises:
        GroundingError: an image, prompt or option that cannot be used.

    Source: section 3.1 of the paper.
    """
    picture = load_image(image)
    if answer is None:
        generation = lmm.generate(
            picture, prompt, max_new_tokens=max_new_tokens, per_head=per_head, row=row, **(generation_options or {})
        )
    else:
        if generation_options:
            raise GroundingError(
                f"a given answer is not generated, so {sorted(generation_options)} have no effect; leave them out"
            )
        generation = lmm.replay(picture, prompt, answer, per_head=per_head, row=row)
    return ground(generation, picture, segmenter=segmenter, nlp=nlp, **options)


def ground(
    generation: Generation,
    image: Any,
    *,
    segmenter: Segmenter | None,
    nlp: Language | None,
    phrases: Sequence[Phrase] | None = None,
    normalization: str = "sequence",
    aggregation: str = "mean",
    view: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    token_offset: int = 0,
    remove_corners: bool = False,
    pronouns: bool = False,
    sam_prompt: str = "point",
    mask_choice: str = "last",
    mask_temperature: float | None = 2e-4,
    mask_threshold: float = 0.75,
) -> Grounding:
    """The cheap stages alone: from a generation to phrases, maps, points and masks. Run it many times on one
    generation.

    Args:
        generation: what `lmm.generate` or `lmm.replay` returned for this image.
        image: the image of that generation, in any form `load_image` opens.
        segmenter: None stops at the points (no masks, scores [p, 0]).
        nlp: finds the noun phrases; may be None where `phrases` are given.
        phrases: ground these instead (`core.phrases.phrase_at` makes one from characters).
        normalization: "sequence" (equation 3) or "none".
        aggregation: "mean", "max" or "first" over the tokens of a phrase's central noun.
        view: name of the view whose peak is taken; None is the last one, the finest.
        layers, heads: keep only these (0-based; needs `per_head` maps); None is all.
        token_offset: read the map this many tokens later (1 reproduces the off-by-one of the reference demo).
        remove_corners: the four corner cells never hold the peak.
        pronouns: ground "it" and "they", too.
        sam_prompt: "point" (the peak) or "mask" (the whole map, with a box).
        mask_choice: "last", "best" or "all" of the three masks.
        mask_temperature, mask_threshold: of the mask prompt, see `Segmenter.predict_from_maps`.

    Raises:
        GroundingError: options that do not fit each other or the generation, an image of another size.

    Source: section 3.1; the options follow section 4 and the released code.
    """
    settings = {
        "normalization": normalization,
        "aggregation": aggregation,
        "view": generation.view(view).name,
        "layers": None if layers is None else list(layers),
        "heads": None if heads is None else list(heads),
        "token_offset": token_offset,
        "remove_corners": remove_corners,
        "pronouns": pronouns,
        "sam_prompt": sam_prompt,
        "mask_choice": mask_choice,
        "mask_temperature": mask_temperature,
        "mask_threshold": mask_threshold,
        "segmenter": None if segmenter is None else segmenter.name,
        "nlp": None if nlp is None else pipeline_name(nlp),
    }
    check_options(**{name: settings[name] for name in CHOICES})
    picture = load_image(image)
    size = (picture.height, picture.width)
    if size != tuple(generation.image_size):
        raise GroundingError(
            f"the image is {size} (H, W), but the generation is of one of {tuple(generation.image_size)}"
        )
    if phrases is None:
        if nlp is None:
            raise GroundingError("noun phrases need a spaCy pipeline: give nlp=load_nlp(...), or phrases=")
        phrases = find_phrases(generation.text, generation.token_spans, nlp, pronouns=pronouns)
    maps = phrase_maps(
        generation, phrases, normalization=normalization, aggregation=aggregation, layers=layers, heads=heads,
        token_offset=token_offset,
    )  # fmt: skip
    points = prompt_points(maps, generation.view(view), size, remove_corners=remove_corners)
    masks, scores = _segment(picture, maps, points, generation.view(view), segmenter, settings)
    return Grounding(size, generation, tuple(phrases), maps, points, masks, scores, settings)


def check_options(**options: Any) -> None:
    """Refuse options that `ground` does not know, before any image is touched.

    Raises:
        GroundingError: an unknown option, or an unknown value of one that names a choice.
    """
    known = [name for name, kind in signature(ground).parameters.items() if kind.kind is kind.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise GroundingError(f"unknown options {', '.join(unknown)}; `ground` takes {', '.join(known)}")
    for name, choices in CHOICES.items():
        if name in options and options[name] not in choices:
            raise GroundingError(f"{name} {options[name]!r} is not known; choose one of {', '.join(choices)}")


def phrase_maps(
    generation: Generation,
    phrases: Sequence[Phrase],
    *,
    normalization: str = "sequence",
    aggregation: str = "mean",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    token_offset: int = 0,
) -> Float[Tensor, "p k"]:
    """Each phrase's map over the visual tokens; the arguments are those of `ground`.

    Raises:
        GroundingError: heads are selected without per-head maps, or an option is unknown.
    """
    attention = generation.attention
    if layers is not None or heads is not None:
        if generation.attention_per_head is None:
            raise GroundingError(
                "to select layers or heads, generate with per_head=True; this generation keeps their mean only"
            )
        attention = select_heads(generation.attention_per_head, layers=layers, heads=heads)
    attention = normalize(attention, normalization)
    last = len(attention) - 1
    rows = [
        aggregate(attention, [min(token + token_offset, last) for token in phrase.tokens], aggregation)
        for phrase in phrases
    ]
    return torch.stack(rows) if rows else attention.new_zeros(0, attention.shape[1])


def _segment(
    picture: Image.Image,
    maps: Tensor,
    points: Tensor,
    view: View,
    segmenter: Segmenter | None,
    settings: dict[str, Any],
) -> tuple[tuple[tuple[dict, ...], ...], Tensor]:
    """Masks as run-length codes and their scores, a few phrases at a time."""
    if segmenter is None:
        return ((),) * len(points), torch.zeros(len(points), 0)
    if len(points) == 0:
        return (), torch.zeros(0, MASK_CHOICES[settings["mask_choice"]])
    segmenter.set_image(picture)
    if settings["sam_prompt"] == "point":
        parts = segmenter.predict_in_parts(points)
    else:
        parts = _from_maps(maps, view, segmenter, settings)
    return encode_chosen(parts, settings["mask_choice"])


def _from_maps(maps: Tensor, view: View, segmenter: Segmenter, settings: dict[str, Any]) -> Iterator[Masks]:
    height, width = segmenter.image_size
    grids = to_grid(maps, view)
    if settings["remove_corners"]:
        grids = remove_corners(grids)
    for part in grids.split(max(1, PIXELS_AT_ONCE // (height * width))):
        yield segmenter.predict_from_maps(
            map_to_pixels(part, view, size=(height, width)),
            temperature=settings["mask_temperature"],
            threshold=settings["mask_threshold"],
        )
