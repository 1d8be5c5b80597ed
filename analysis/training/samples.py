"""What a training sample looks like to the model: the picture, its text, and which of it is learnt."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from analysis.figures import picture_uri
from core.checkpoints import load_processor
from core.images import load_image
from core.training.data import ConversationData, read_samples
from core.training.recipes import Recipe
from core.training.templates import IGNORE, Tokens

STYLE = """<style>
.aas-sample {display: flex; gap: 1em; margin: .6em 0 1.4em; align-items: flex-start; max-width: 75em}
.aas-sample img {max-width: 190px; border: 1px solid #ccc}
.aas-sample pre {white-space: pre-wrap; margin: 0; font-size: .88em; line-height: 1.55; color: #555; background: none}
.aas-sample mark {background: #cfe8d8; color: #000; padding: .1em 0}
.aas-sample .note {color: #777; font-size: .85em; margin: 0 0 .3em}
</style>"""


def stage_samples(
    model: str | Path, data: str | Path, *, recipe: Recipe, images: str | Path | None = None
) -> ConversationData:
    """The dataset that `core.training.run.train` trains a stage on; arguments as there.

    Raises:
        GroundingError: unreadable data, or a model without processor.
    """
    return ConversationData(
        read_samples(data, images),
        load_processor(model),
        template=recipe.template,
        max_length=recipe.max_length,
        pad=recipe.pad,
    )


def samples_html(data: ConversationData, numbers: Sequence[int]) -> str:
    """Training samples with their labels: learnt tokens are marked, the run of visual tokens is one word.

    Args:
        data: the dataset of a stage.
        numbers: which of its samples.
    """
    return STYLE + "".join(_sample(data, number) for number in numbers)


def label_runs(tokens: Tokens, tokenizer: Any, image_token: str) -> list[tuple[str, bool]]:
    """The text of a sample in pieces (text, learnt); visual tokens are counted instead of written out."""
    image = tokenizer.convert_tokens_to_ids(image_token)
    pairs = list(zip(tokens.ids.tolist(), tokens.labels.tolist(), strict=True))
    runs = []
    for (learnt, visual), group in groupby(pairs, key=lambda pair: (pair[1] != IGNORE, pair[0] == image)):
        ids = [token for token, _ in group]
        text = f"[{len(ids)} visual tokens]" if visual else _text(ids, tokenizer)
        runs.append((text, learnt))
    return runs


def _text(ids: list[int], tokenizer: Any) -> str:
    """Text of consecutive tokens, with the space that the first one begins with."""
    spaced = tokenizer.convert_ids_to_tokens(ids[0]).startswith(("▁", "Ġ"))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return f" {text}" if spaced and not text.startswith(" ") else text


def _sample(data: ConversationData, number: int) -> str:
    sample = data.samples[number]
    tokens = data.tokens(sample, with_image=data.shows(sample))
    pieces = label_runs(tokens, data.processor.tokenizer, data.processor.image_token)
    text = "".join(
        f"<mark>{_shown(piece)}</mark>" if learnt else html.escape(piece, quote=False) for piece, learnt in pieces
    )
    learnt = int((tokens.labels != IGNORE).sum())
    note = f"{html.escape(sample.id)}: {len(tokens.ids)} tokens, {learnt} of them learnt"
    picture = "" if sample.image is None else f'<img alt="the picture" src="{picture_uri(_small(sample.image))}">'
    return f'<div class="aas-sample">{picture}<div><p class="note">{note}</p><pre>{text}</pre></div></div>'


def _shown(piece: str) -> str:
    """A learnt piece with its line break, which is a token like any other, made visible."""
    return html.escape(piece, quote=False).replace("\n", "↵\n")


def _small(path: Path, side: int = 380) -> Image.Image:
    image = load_image(path)
    image.thumbnail((side, side))
    return image
