"""Every single head against the mean over all (Figure 5 and Table 7 of the paper), from points, without a segmenter."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from core.atomic import remove_stale, write_atomically
from core.attention import aggregate, mean_over_heads, normalize
from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View
from core.phrases import Phrase, find_phrases, phrase_at
from core.points import prompt_points


@dataclass(frozen=True)
class HeadPoints:
    """Where each head, and the mean over all heads, would point for each phrase of one answer.

    Attributes:
        phrases: the answer's p noun phrases.
        points: float32 [p, l, n, 2], (x, y) in pixels of the original image, one per layer and head.
        mean_points: float32 [p, 2], of the map averaged over all layers and heads.
    """

    phrases: tuple[Phrase, ...]
    points: np.ndarray
    mean_points: np.ndarray


def choose_phrase(generation: Generation, nlp: Any, *, word: str = "", categories: Iterable[str] = ()) -> Phrase:
    """The words whose maps are shown: the first place of `word` in the answer, or the first noun that names a category.

    Args:
        generation: the answer.
        nlp: a spaCy pipeline.
        word: any words of the answer, upper or lower case; "" looks for a noun.
        categories: what counts as an object; where none is named, the first noun is taken.

    Raises:
        GroundingError: the answer lacks the word, or has no noun.
    """
    text = generation.text
    if word:
        found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE)
        phrase = phrase_at(text, generation.token_spans, found.span()) if found else None
        if phrase is None:
            raise GroundingError(f"the answer does not contain {word!r}; choose a word of it: {text!r}")
        return phrase
    phrases = find_phrases(text, generation.token_spans, nlp)
    if not phrases:
        raise GroundingError(f"the answer has no noun to show; choose a word of it: {text!r}")
    known = {name.lower() for name in categories}
    return next((phrase for phrase in phrases if phrase.root.lower() in known), phrases[0])


def phrase_head_maps(
    generation: Generation, tokens: Iterable[int], *, normalization: str = "sequence", aggregation: str = "mean"
) -> Float[Tensor, "l n k"]:
    """Every head's map of some output tokens, each head normalised over the answer by itself.

    Raises:
        GroundingError: the generation has no per-head attention.

    Source: Figure 5. Equation 3 is linear, so the mean of these maps is the normalised mean map.
    """
    attention = _per_head(generation)
    tokens = list(tokens)
    layers = []
    for layer in attention.unbind(1):
        flat = rearrange(layer, "t n k -> t (n k)")
        layers.append(
            rearrange(aggregate(normalize(flat, normalization), tokens, aggregation), "(n k) -> n k", n=layer.shape[1])
        )
    return torch.stack(layers)


def head_points(
    generation: Generation,
    phrases: tuple[Phrase, ...],
    view: View,
    *,
    normalization: str = "sequence",
    aggregation: str = "mean",
) -> HeadPoints:
    """Point prompts of every head for every phrase.

    Raises:
        GroundingError: the generation has no per-head attention.
    """
    attention = _per_head(generation)
    size = generation.image_size
    mean = normalize(mean_over_heads(attention), normalization)
    points = torch.zeros(len(phrases), *attention.shape[1:3], 2)
    mean_points = torch.zeros(len(phrases), 2)
    for number, phrase in enumerate(phrases):
        maps = phrase_head_maps(generation, phrase.tokens, normalization=normalization, aggregation=aggregation)
        for layer, rows in enumerate(maps):
            points[number, layer] = prompt_points(rows, view, size)
        mean_points[number] = prompt_points(aggregate(mean, list(phrase.tokens), aggregation)[None], view, size)[0]
    return HeadPoints(phrases, points.numpy(), mean_points.numpy())


def _per_head(generation: Generation) -> Float[Tensor, "t l n k"]:
    if generation.attention_per_head is None:
        raise GroundingError("this generation holds no per-head attention; call generate or replay with per_head=True")
    return generation.attention_per_head


class HeadStore:
    """A folder of `HeadPoints`, one file per image, for one configuration; finished images are not computed again.

    Raises:
        GroundingError: the folder was made with another configuration.
    """

    def __init__(self, directory: str | Path, config: dict[str, Any]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_stale(self.directory)
        wanted = json.dumps(config, sort_keys=True, indent=1)
        file = self.directory / "config.json"
        if not file.exists():
            write_atomically(file, wanted.encode("utf-8"))
        elif file.read_text(encoding="utf-8") != wanted:
            raise GroundingError(
                f"{self.directory} holds points made with {file.read_text(encoding='utf-8')}, and now {wanted} was "
                "asked for; choose another output_dir or delete that folder"
            )

    def ids(self) -> list[str]:
        """Ids of the finished images, sorted."""
        return sorted(unquote(path.stem) for path in self.directory.glob("*.npz"))

    def errors(self) -> dict[str, str]:
        """Message of every image that could not be used."""
        return {unquote(path.stem): path.read_text(encoding="utf-8") for path in self.directory.glob("*.error")}

    def write_error(self, record_id: str, message: str) -> None:
        """Keep the reason why an image has no points."""
        write_atomically(self._path(record_id, ".error"), message.encode("utf-8"))

    def write(self, record_id: str, points: HeadPoints) -> None:
        """Keep one image's points; a kill leaves either the whole file or none."""
        phrases = json.dumps([[p.text, p.span, p.root, p.root_span, p.tokens] for p in points.phrases])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, phrases=phrases, points=points.points, mean_points=points.mean_points)
        write_atomically(self._path(record_id), buffer.getvalue())
        self._path(record_id, ".error").unlink(missing_ok=True)

    def read(self, record_id: str) -> HeadPoints:
        """One image's points.

        Raises:
            GroundingError: the image is not finished.
        """
        path = self._path(record_id)
        if not path.exists():
            known = self.errors().get(record_id, f"finished are {len(self.ids())} images")
            raise GroundingError(f"no points of image {record_id!r} in {self.directory}; {known}")
        with np.load(path) as content:
            phrases = tuple(
                Phrase(text, tuple(span), root, tuple(root_span), tuple(tokens))
                for text, span, root, root_span, tokens in json.loads(str(content["phrases"]))
            )
            return HeadPoints(phrases, content["points"], content["mean_points"])

    def __iter__(self) -> Iterator[tuple[str, HeadPoints]]:
        return ((record_id, self.read(record_id)) for record_id in self.ids())

    def _path(self, record_id: str, suffix: str = ".npz") -> Path:
        return self.directory / f"{quote(record_id, safe='').replace('.', '%2E')}{suffix}"


def collect_head_points(
    items: Iterable[tuple[str, Path]],
    prompt: str,
    *,
    lmm: Any,
    nlp: Any,
    store: HeadStore,
    max_new_tokens: int = 512,
    normalization: str = "sequence",
    aggregation: str = "mean",
    progress: bool = True,
) -> HeadStore:
    """Answer the prompt for every image, with per-head attention, and keep the points of every head; resumable.

    An image that cannot be read or answered becomes an error record, which is printed, and the rest goes on.

    Args:
        items: (id, image file) pairs.
        prompt: the question.
        lmm, nlp: loaded models; the last view of each generation is read, as in `core.attend_and_segment`.
        store: where the points go.
        max_new_tokens, normalization, aggregation: as in `core.attend_and_segment`.
        progress: print a progress line now and then.
    """
    items = list(items)
    done = {*store.ids(), *store.errors()}
    missing = [(record_id, path) for record_id, path in items if record_id not in done]
    for record_id, path in tqdm(missing, desc="head points", file=sys.stdout, mininterval=30, disable=not progress):
        try:
            generation = lmm.generate(path, prompt, max_new_tokens=max_new_tokens, per_head=True)
        except GroundingError as error:
            store.write_error(record_id, str(error))
            continue
        phrases = find_phrases(generation.text, generation.token_spans, nlp)
        view = generation.views[-1]
        options = {"normalization": normalization, "aggregation": aggregation}
        store.write(record_id, head_points(generation, phrases, view, **options))
    failed = [message for record_id, message in store.errors().items() if record_id in dict(items)]
    if failed:
        print(f"{len(failed)} of {len(items)} images could not be used: {'; '.join(failed[:3])}")
    return store


def maps_reading(maps: np.ndarray) -> str:
    """One sentence on the maps [l, n, h, w] of one word: which layer looks at the image most, which head is focused."""
    mass = maps.sum(axis=(2, 3)).mean(axis=1)
    flat = rearrange(maps, "l n h w -> l n (h w)")
    focus = flat.max(axis=-1) / np.maximum(flat.sum(axis=-1), np.finfo(float).tiny)
    layer, head = np.unravel_index(int(focus.argmax()), focus.shape)
    most, least = int(mass.argmax()), int(mass.argmin())
    return (
        f"On average a head of layer {most} gives the image {100 * mass[most]:.1f} % of its attention for this word, "
        f"the most of all layers, and one of layer {least} {100 * mass[least]:.1f} %, the least; "
        f"layer {layer} head {head} is the most focused, with {100 * focus[layer, head]:.0f} % of that in one cell."
    )
