"""Attend and segment: the one composition of all stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.attention import aggregate, normalize, remove_corners, select_heads, to_grid
from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View, map_to_pixels
from core.images import load_image
from core.masks import MASK_CHOICES, Masks, Segmenter, encode_chosen
from core.options import GroundOptions
from core.phrases import Phrase, find_phrases, first_tokens, pipeline_name
from core.points import PIXELS_AT_ONCE, prompt_points

if TYPE_CHECKING:
    from PIL import Image
    from spacy.language import Language

    from core.lmm import LMM


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
        options: how it was grounded.
        segmenter, nlp: names of the segmenter and the spaCy pipeline; None where there was none.
        measured: further tensors by name, see `measure` of `core.run.ground_dataset`.

    >>> from core import attend_and_segment, load_lmm, load_nlp
    >>> lmm, nlp = load_lmm("embedded", geometry="pad", device="cpu"), load_nlp("embedded")
    >>> found = attend_and_segment("embedded", "What is there?", answer="A moon.", lmm=lmm, segmenter=None, nlp=nlp)
    >>> found.phrases[0].text, found.points.shape, found.masks
    ('A moon', torch.Size([1, 2]), ((),))
    """

    image_size: tuple[int, int]
    generation: Generation
    phrases: tuple[Phrase, ...]
    maps: Float[Tensor, "p k"]
    points: Float[Tensor, "p 2"]
    masks: tuple[tuple[dict, ...], ...]
    scores: Float[Tensor, "p m"]
    options: GroundOptions
    segmenter: str | None = None
    nlp: str | None = None
    measured: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def view(self) -> View:
        """The view whose peaks were taken."""
        return self.generation.view(self.options.view)


def attend_and_segment(
    image: Any,
    prompt: str,
    *,
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Language,
    answer: str | None = None,
    max_new_tokens: int = 512,
    generation_options: dict[str, Any] | None = None,
    options: GroundOptions | str = "paper",
    **changes: Any,
) -> Grounding:
    """Answer a prompt about an image and ground the answer's noun phrases in pixels.

    Args:
        image: anything `core.images.load_image` opens (path, PIL image, array).
        prompt: the question, or a full prompt that already holds the model's image placeholder.
        lmm: a model from `load_lmm`.
        segmenter: from `load_segmenter`; None stops at the points.
        nlp: from `load_nlp`.
        answer: ground this text (teacher-forced) instead of generating one.
        max_new_tokens: longest answer.
        generation_options: further options of `lmm.generate` (`system`, `do_sample`, ...).
        options: a preset's name (`core.options.PRESETS`), or `GroundOptions`.
        **changes: fields of `GroundOptions` that differ from `options`.

    Raises:
        GroundingError: an image, prompt or option that cannot be used.

    Source: section 3.1 of the paper.

    >>> from core import attend_and_segment, load_lmm, load_nlp, load_segmenter
    >>> lmm = load_lmm("embedded", geometry="pad", device="cpu")
    >>> parts = {"lmm": lmm, "segmenter": load_segmenter("embedded", device="cpu"), "nlp": load_nlp("embedded")}
    >>> found = attend_and_segment("embedded", "Describe the image in detail.", **parts)
    >>> [phrase.text for phrase in found.phrases][:3]
    ['The image', 'a blue moon', 'a yellow flag']
    >>> found.masks[1][0]["size"]
    [320, 240]
    >>> one = attend_and_segment("embedded", "What is there?", answer="A moon.", options="reference_v1", **parts)
    >>> one.options.heads
    (-2,)
    """
    options = GroundOptions.of(options, **changes)
    picture = load_image(image)
    if answer is None:
        generation = lmm.generate(
            picture, prompt, max_new_tokens=max_new_tokens, **options.capture(), **(generation_options or {})
        )
    else:
        refuse_without_effect(generation_options)
        generation = lmm.replay(picture, prompt, answer, **options.capture(given=True))
    return ground(generation, picture, segmenter=segmenter, nlp=nlp, options=options)


def refuse_without_effect(generation_options: Mapping[str, Any] | None) -> None:
    """Options of `generate` beside an answer that is given.

    Raises:
        GroundingError: there are some.
    """
    if generation_options:
        raise GroundingError(
            f"a given answer is not generated, so {sorted(generation_options)} have no effect; leave them out"
        )


def ground(
    generation: Generation,
    image: Any,
    *,
    segmenter: Segmenter | None,
    nlp: Language | None,
    phrases: Sequence[Phrase] | None = None,
    options: GroundOptions | str = "paper",
    **changes: Any,
) -> Grounding:
    """The cheap stages alone: from a generation to phrases, maps, points and masks. Run it many times on one
    generation.

    Args:
        generation: what `lmm.generate` or `lmm.replay` returned for this image.
        image: the image of that generation, in any form `load_image` opens.
        segmenter: None stops at the points (no masks, scores [p, 0]).
        nlp: finds the noun phrases; may be None where `phrases` are given.
        phrases: ground these instead (`core.phrases.phrase_at` makes one from characters).
        options, **changes: as in `attend_and_segment`.

    Raises:
        GroundingError: options that do not fit each other or the generation, an image of another size.

    Source: section 3.1 of the paper.

    >>> from core import ground, load_lmm, load_nlp
    >>> lmm, nlp = load_lmm("embedded", geometry="pad", device="cpu"), load_nlp("embedded")
    >>> answer = lmm.replay("embedded", "What is there?", "A blue moon.")
    >>> ways = [ground(answer, "embedded", segmenter=None, nlp=nlp, options=name) for name in ("paper", "reference_v2")]
    >>> [way.options.aggregation for way in ways]
    ['mean', 'max']
    """
    options = GroundOptions.of(options, **changes)
    if generation.n_images > 1:
        raise GroundingError(
            f"the prompt held {generation.n_images} images; ground the answer on each with "
            "core.several.ground_images, or on one with generation.of_image(number)"
        )
    view = generation.view(options.view)
    row = generation.model.get("row", options.row)
    if row != options.row:
        raise GroundingError(
            f"the generation read the rows {row!r}, not {options.row!r}; generate it with row={options.row!r}"
        )
    picture = load_image(image)
    size = (picture.height, picture.width)
    if size != tuple(generation.image_size):
        raise GroundingError(
            f"the image is {size} (H, W), but the generation is of one of {tuple(generation.image_size)}"
        )
    if phrases is None:
        phrases = find_said(generation, nlp, options)
    attention = token_maps(generation, options=options)
    maps = _maps(attention, phrases, options)
    points = _points(generation, attention, phrases, maps, options)
    masks, scores = _segment(picture, maps, points, view, segmenter, options)
    return Grounding(
        size,
        generation,
        tuple(phrases),
        maps,
        points,
        masks,
        scores,
        options,
        segmenter=None if segmenter is None else segmenter.name,
        nlp=None if nlp is None else pipeline_name(nlp),
    )


def find_said(generation: Generation, nlp: Language | None, options: GroundOptions) -> tuple[Phrase, ...]:
    """What of an answer is grounded: its noun phrases, or its first tokens as one phrase.

    Raises:
        GroundingError: no pipeline for the noun phrases.
    """
    if options.first_tokens is not None:
        return first_tokens(generation.text, len(generation.token_ids), options.first_tokens)
    if nlp is None:
        raise GroundingError("noun phrases need a spaCy pipeline: give nlp=load_nlp(...), or phrases=")
    return find_phrases(generation.text, generation.token_spans, nlp, pronouns=options.pronouns)


def phrase_maps(
    generation: Generation, phrases: Sequence[Phrase], *, options: GroundOptions | str = "paper", **changes: Any
) -> Float[Tensor, "p k"]:
    """Each phrase's map over the visual tokens; options as in `attend_and_segment`.

    Raises:
        GroundingError: heads are selected without per-head maps, or an option is unknown.
    """
    options = GroundOptions.of(options, **changes)
    return _maps(token_maps(generation, options=options), phrases, options)


def phrase_points(
    generation: Generation, phrases: Sequence[Phrase], *, options: GroundOptions | str = "paper", **changes: Any
) -> Float[Tensor, "p 2"]:
    """Each phrase's prompt point, (x, y) in pixels of the original image; options as in `attend_and_segment`.

    Raises:
        GroundingError: as for `phrase_maps`; or no view of that name.
    """
    options = GroundOptions.of(options, **changes)
    attention = token_maps(generation, options=options)
    return _points(generation, attention, phrases, _maps(attention, phrases, options), options)


def token_maps(
    generation: Generation, *, options: GroundOptions | str = "paper", **changes: Any
) -> Float[Tensor, "t k"]:
    """Each output token's map over the visual tokens: the layers and heads asked for, then equation 3.

    Raises:
        GroundingError: heads are selected without per-head maps, or an option is unknown.
    """
    options = GroundOptions.of(options, **changes)
    attention = generation.attention
    if options.selects_heads:
        if generation.attention_per_head is None:
            raise GroundingError(
                "to select layers or heads, generate with per_head=True; this generation keeps their mean only"
            )
        attention = select_heads(generation.attention_per_head, layers=options.layers, heads=options.heads)
    return normalize(
        attention,
        options.normalization,
        written=generation.token_spans[:, 1] > generation.token_spans[:, 0],
        baseline=None if options.selects_heads else generation.prompt_attention,
    )


def _maps(attention: Tensor, phrases: Sequence[Phrase], options: GroundOptions) -> Tensor:
    rows = [aggregate(attention, _tokens(phrase, attention, options), options.aggregation) for phrase in phrases]
    return torch.stack(rows) if rows else attention.new_zeros(0, attention.shape[1])


def _points(
    generation: Generation, attention: Tensor, phrases: Sequence[Phrase], maps: Tensor, options: GroundOptions
) -> Tensor:
    """The phrases' points from their maps, or with "pixel_max" from those of their tokens."""
    place = {"view": generation.view(options.view), "size": tuple(generation.image_size)}
    place["remove_corners"] = options.remove_corners
    if options.aggregation != "pixel_max" or not phrases:
        return prompt_points(maps, **place)
    groups = [_tokens(phrase, attention, options) for phrase in phrases]
    rows = attention[[token for group in groups for token in group]]
    return prompt_points(rows, groups=[len(group) for group in groups], **place)


def _tokens(phrase: Phrase, attention: Tensor, options: GroundOptions) -> list[int]:
    last = len(attention) - 1
    return [min(token + options.token_offset, last) for token in phrase.tokens]


def _segment(
    picture: Image.Image,
    maps: Tensor,
    points: Tensor,
    view: View,
    segmenter: Segmenter | None,
    options: GroundOptions,
) -> tuple[tuple[tuple[dict, ...], ...], Tensor]:
    """Masks as run-length codes and their scores, a few phrases at a time."""
    if segmenter is None:
        return ((),) * len(points), torch.zeros(len(points), 0)
    if len(points) == 0:
        return (), torch.zeros(0, MASK_CHOICES[options.mask_choice])
    segmenter.set_image(picture)
    if options.sam_prompt == "point":
        parts = segmenter.predict_in_parts(points, choice=options.mask_choice)
    else:
        parts = _from_maps(maps, view, segmenter, options)
    return encode_chosen(parts, options.mask_choice)


def _from_maps(maps: Tensor, view: View, segmenter: Segmenter, options: GroundOptions) -> Iterator[Masks]:
    height, width = segmenter.image_size
    grids = to_grid(maps, view)
    if options.remove_corners:
        grids = remove_corners(grids)
    for part in grids.split(max(1, PIXELS_AT_ONCE // (height * width))):
        yield segmenter.predict_from_maps(
            map_to_pixels(part, view, size=(height, width)),
            temperature=options.mask_temperature,
            threshold=options.mask_threshold,
            choice=options.mask_choice,
        )
