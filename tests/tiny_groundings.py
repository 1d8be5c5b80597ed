"""Small generations and groundings, made without a language model, for tests of the stages after it."""

from __future__ import annotations

from functools import cache

import torch

from core.generation import Generation
from core.geometry import View
from core.options import GroundOptions
from core.phrases import Phrase, load_nlp
from core.pipeline import Grounding
from core.rle import encode_rle

SIZE = (40, 60)  # (H, W) of the image
GRID = (4, 6)


@cache
def nlp():
    """The embedded spaCy pipeline, loaded once."""
    return load_nlp("embedded")


def word_spans(text: str) -> torch.Tensor:
    """One token per blank-separated word, with the blank before it, and an end-of-sequence token that shows nothing."""
    spans, start = [], 0
    for word in text.split(" "):
        spans.append((max(0, start - 1), start + len(word)))
        start += len(word) + 1
    return torch.tensor([*spans, (len(text), len(text))], dtype=torch.int64)


def generation(
    text: str = "There is a red star next to the blue rook.",
    *,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    grid: tuple[int, int] = GRID,
    per_head: tuple[int, int] | None = None,
    row: str = "predicting",
) -> Generation:
    """Random attention for a text; k holds a thumbnail of 4 cells, then the grid with a newline slot per row."""
    spans = word_spans(text)
    generator = torch.Generator().manual_seed(seed)
    h, w = grid
    k = 4 + h * (w + 1)
    fine = 4 + torch.arange(h * (w + 1)).view(h, w + 1)[:, :w]
    box = (0.0, 0.0, float(size[1]), float(size[0]))
    heads = None
    if per_head is not None:
        heads = torch.rand(len(spans), *per_head, k, generator=generator) / k
    return Generation(
        text=text,
        token_ids=torch.arange(len(spans)),
        prompt_ids=torch.arange(k + 5),
        attention=heads.mean((1, 2)) if heads is not None else torch.rand(len(spans), k, generator=generator) / k,
        views=(View("base", torch.arange(4).view(2, 2), box), View("grid", fine, box)),
        token_spans=spans,
        image_size=size,
        attention_per_head=heads,
        model={"name_or_path": "random", "revision": None, "row": row},
    )


def grounding(seed: int = 0, *, phrases: int = 2, masks: int = 1, **options) -> Grounding:
    """A grounding with random contents."""
    source = generation(seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    found = [
        Phrase("a red star", (9, 19), "star", (15, 19), (4,)),
        Phrase("the blue rook", (28, 41), "rook", (37, 41), (9,)),
    ]
    codes = tuple(
        tuple(encode_rle(torch.rand(SIZE, generator=generator) > 0.5) for _ in range(masks)) for _ in range(phrases)
    )
    return Grounding(
        image_size=source.image_size,
        generation=source,
        phrases=tuple(found[:phrases]),
        maps=torch.rand(phrases, source.attention.shape[1], generator=generator),
        points=torch.rand(phrases, 2, generator=generator) * 40,
        masks=codes,
        scores=torch.rand(phrases, masks, generator=generator),
        options=GroundOptions(heads=(0, -1)),
        segmenter="tiny",
        nlp="en_embedded 1.0",
    )
