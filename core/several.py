"""Several images in one prompt, or frames of a video given as images: the same phrases grounded on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import GroundingError
from core.generation import Generation
from core.options import GroundOptions
from core.phrases import Phrase
from core.pipeline import Grounding, find_said, ground, phrase_maps

if TYPE_CHECKING:
    from spacy.language import Language

    from core.masks import Segmenter


def ground_images(
    generation: Generation,
    images: Sequence[Any],
    *,
    segmenter: Segmenter | None,
    nlp: Language | None,
    phrases: Sequence[Phrase] | None = None,
    options: GroundOptions | str = "paper",
    **changes: Any,
) -> tuple[Grounding, ...]:
    """An answer about several images, grounded on each of them: its phrases are the same, maps, points and masks are
    each image's own. A phrase gets a point on every image, whichever it speaks of; see `image_shares`.

    Args:
        generation: of `lmm.generate([[first, second]], prompt)[0]`, or of `replay`.
        images: the same images in the same order.
        segmenter, nlp, phrases, options, **changes: as for `core.pipeline.ground`.

    Raises:
        GroundingError: another number of images; or as for `ground`.

    >>> from core import load_lmm, load_nlp
    >>> from core.several import ground_images
    >>> lmm, both = load_lmm("embedded", device="cpu"), ["embedded", "embedded"]
    >>> answer = lmm.replay([both], "What is there?", ["A blue moon."])[0]
    >>> found = ground_images(answer, both, segmenter=None, nlp=load_nlp("embedded"))
    >>> len(found), [phrase.text for phrase in found[1].phrases], answer.attention.shape[1]
    (2, ['A blue moon'], 200)
    """
    if len(images) != generation.n_images:
        raise GroundingError(f"{len(images)} images were given, and the prompt held {generation.n_images}")
    options = GroundOptions.of(options, **changes)
    if phrases is None:
        phrases = find_said(generation, nlp, options)
    parts = {"segmenter": segmenter, "nlp": nlp, "phrases": phrases, "options": options}
    return tuple(ground(generation.of_image(i), image, **parts) for i, image in enumerate(images))


def image_shares(
    generation: Generation, phrases: Sequence[Phrase], *, options: GroundOptions | str = "paper", **changes: Any
) -> Float[Tensor, "p i"]:
    """How each phrase's attention to the images is divided among them: shares of the raw attention (before equation 3)
    on the cells of each image's default view, which sum to 1.

    Raises:
        GroundingError: as for `core.pipeline.phrase_maps`.
    """
    options = GroundOptions.of(options, **changes | {"normalization": "none"})
    maps = phrase_maps(generation, phrases, options=options)
    cells = [generation.of_image(i).view(options.view).index.flatten() for i in range(generation.n_images)]
    mass = torch.stack([maps[:, each].sum(1) for each in cells], 1)
    return mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
