"""The objects of a grounded answer as they are shown: phrases put together, one mask and one colour each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis.conversation.drawn import DrawnAnswer, DrawnObject
from analysis.figures import PALETTE
from core.attention import to_grid
from core.pipeline import Grounding
from core.rle import decode_rle

SAME_OBJECT = 0.5  # IoU from which two phrases with the same noun are one object mentioned twice


def drawn_objects(
    grounding: Grounding, *, best: int = 0, max_overlap: float = 0.05, min_attention: float = 0.0
) -> tuple[DrawnObject, ...]:
    """The objects of an answer, in the order of their first mention, each with a colour of its own.

    Two phrases with the same noun whose masks overlap (IoU of at least 0.5) are one object mentioned twice. Where the
    records keep three masks per phrase, the one with the highest score is shown; phrases with an empty mask are left
    out.

    Args:
        grounding: the answer.
        best: keep only the so many best-scored objects whose masks do not overlap (Figure 7 shows four); 0 keeps all.
        min_attention: leave out phrases whose map's highest value is below this share of the answer's highest: words
            such as "the image" that look at nothing in particular (ours, for pictures only). 0 keeps all.
        max_overlap: masks count as overlapping when they share more than this fraction of the smaller one.

    Source: Figures 1 and 7.
    """
    groups = _mentions(grounding, _seen(grounding, min_attention))
    if best:
        groups = _best_apart(groups, best, max_overlap)
    groups.sort(key=lambda group: min(number for number, _, _ in group))
    objects = []
    for position, group in enumerate(groups):
        number, mask, score = group[0]
        others = tuple(each for each, _, _ in group[1:])
        x, y = (float(value) for value in grounding.points[number])
        values = to_grid(grounding.maps[number], grounding.view).numpy()
        colour, name = PALETTE[position % len(PALETTE)], grounding.phrases[number].text
        objects.append(DrawnObject(colour, name, (number, *others), mask, score, (x, y), values))
    return tuple(objects)


def drawn_answer(grounding: Grounding, **choice: Any) -> DrawnAnswer:
    """An answer as it is shown; `choice` as in `drawn_objects`."""
    objects = drawn_objects(grounding, **choice)
    return DrawnAnswer(tuple(coloured_pieces(grounding, objects)), objects, tuple(grounding.view.box))


Mention = tuple[int, np.ndarray, float]  # phrase number, mask, score


def _seen(grounding: Grounding, min_attention: float) -> list[bool]:
    """For every phrase whether its map's highest value comes near enough to that of the answer's strongest phrase."""
    if len(grounding.maps) == 0:
        return []
    view = grounding.view
    peaks = to_grid(grounding.maps, view).flatten(1).amax(1)
    return (peaks >= min_attention * peaks.max()).tolist() if min_attention else [True] * len(peaks)


def _mentions(grounding: Grounding, seen: Sequence[bool]) -> list[list[Mention]]:
    """Phrases grouped into objects; the best-scored mention leads its group."""
    groups: list[list[Mention]] = []
    for number, (phrase, masks) in enumerate(zip(grounding.phrases, grounding.masks, strict=True)):
        if not masks or not seen[number]:
            continue
        chosen = int(grounding.scores[number].argmax())
        mask = decode_rle(masks[chosen]).numpy()
        if not mask.any():
            continue
        mention = (number, mask, float(grounding.scores[number][chosen]))
        noun = phrase.root.lower()
        for group in groups:
            if grounding.phrases[group[0][0]].root.lower() == noun and _iou(group[0][1], mask) >= SAME_OBJECT:
                group.append(mention)
                group.sort(key=lambda each: -each[2])
                break
        else:
            groups.append([mention])
    return groups


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def _best_apart(groups: list[list[Mention]], best: int, max_overlap: float) -> list[list[Mention]]:
    kept: list[list[Mention]] = []
    for group in sorted(groups, key=lambda each: -each[0][2]):
        mask = group[0][1]
        shared = [(mask & other[0][1]).sum() / min(mask.sum(), other[0][1].sum()) for other in kept]
        if len(kept) < best and all(share <= max_overlap for share in shared):
            kept.append(group)
    return kept


def coloured_pieces(grounding: Grounding, objects: Sequence[DrawnObject]) -> list[tuple[str, int | None]]:
    """The answer cut into (text, object number or None) pieces; joined, the texts are the answer."""
    owner = {number: position for position, each in enumerate(objects) for number in each.phrases}
    text, pieces, end = grounding.generation.text, [], 0
    for number, position in sorted(owner.items(), key=lambda pair: grounding.phrases[pair[0]].span):
        start, stop = grounding.phrases[number].span
        pieces += [(text[end:start], None), (text[start:stop], position)]
        end = stop
    return [piece for piece in [*pieces, (text[end:], None)] if piece[0]]


def phrase_table(shown: Mapping[str, tuple[Image.Image, Grounding]]) -> pd.DataFrame:
    """One row per phrase of every picture: words, prompt point in pixels, share of the image in the mask, score."""
    rows = []
    for name, (_, grounding) in shown.items():
        area = grounding.image_size[0] * grounding.image_size[1]
        for number, phrase in enumerate(grounding.phrases):
            best = int(grounding.scores[number].argmax()) if grounding.masks[number] else None
            mask = None if best is None else decode_rle(grounding.masks[number][best])
            share = float("nan") if mask is None else 100 * float(mask.sum()) / area
            score = float("nan") if best is None else f"{float(grounding.scores[number][best]):.2f}"
            x, y = grounding.points[number].tolist()
            rows.append((name, phrase.text, phrase.root, x, y, share, score))
    return pd.DataFrame(rows, columns=["picture", "phrase", "noun", "x", "y", "mask % of image", "SAM's IoU estimate"])


def reading(name: str, grounding: Grounding, **choice: Any) -> str:
    """One sentence on one answer: how many phrases and distinct objects it grounds; `choice` as in `drawn_objects`."""
    objects = drawn_objects(grounding, **choice)
    nouns = ", ".join(dict.fromkeys(grounding.phrases[each.phrases[0]].root for each in objects)) or "none"
    return (
        f"{name}: {len(grounding.generation.token_ids)} tokens, {len(grounding.phrases)} noun phrases, "
        f"{len(objects)} objects shown ({nouns})."
    )
