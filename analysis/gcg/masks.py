"""Run-length codes of masks: checked as they come in, compared without being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from pycocotools import mask as rle

from core.errors import GroundingError


def checked_rle(code: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """A compressed run-length code of the same mask, whether this one is compressed or not.

    pycocotools itself reads broken codes without a word, and beyond their end.

    Args:
        code: {"size": [H, W], "counts": text, bytes or a list of run lengths}.
        size: (H, W) that it must have; None takes its own.

    Raises:
        GroundingError: what is wrong with it.
    """
    if not isinstance(code, dict) or not {"size", "counts"} <= set(code):
        raise GroundingError(f"a mask must be an object with size and counts, not {str(code)[:60]!r}")
    own = code["size"]
    if not isinstance(own, list | tuple) or len(own) != 2 or not all(type(side) is int and side > 0 for side in own):
        raise GroundingError(f"its size must be [height, width] in pixels, not {str(own)[:60]!r}")
    if size is not None and tuple(own) != tuple(size):
        raise GroundingError(f"its size is {list(own)} (height, width), but the image is {list(size)}")
    counts = code["counts"]
    if not isinstance(counts, str | bytes | list):
        raise GroundingError(f"its counts must be text or a list of run lengths, not {type(counts).__name__}")
    runs = np.asarray(counts) if isinstance(counts, list) else run_lengths(counts)
    if runs.dtype.kind not in "iu" or runs.ndim != 1 or (runs < 0).any() or runs.sum() != own[0] * own[1]:
        raise GroundingError(
            f"its counts are not the run lengths of {own[0]} x {own[1]} pixels; they are cut off, or of another mask"
        )
    if isinstance(counts, list):
        return rle.frPyObjects({"size": list(own), "counts": counts}, *own)
    return {"size": list(own), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def run_lengths(counts: str | bytes) -> Integer[np.ndarray, " runs"]:
    """The run lengths behind a compressed code's counts: five bits a character, low ones first, a sixth bit where the
    number goes on; from the fourth on, each is the difference from the last but one.

    Raises:
        GroundingError: not such a text.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise GroundingError("its counts are no compressed run lengths") from error
    letters = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if len(letters) == 0 or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise GroundingError("its counts are no compressed run lengths, or are cut off")
    ends = np.flatnonzero(letters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 7:
        raise GroundingError("its counts are no compressed run lengths")
    place = np.arange(len(letters)) - np.repeat(starts, digits)
    values = np.add.reduceat((letters & 31) << (5 * place), starts)
    values -= np.where(letters[ends] & 16, 1 << (5 * digits), 0)  # the sign
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def iou_matrix(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], *, crowds: Sequence[bool] | None = None
) -> Float[np.ndarray, "p g"]:
    """Intersection over union of every mask of the first with every one of the second; 0 of two empty masks.

    Args:
        first, second: compressed run-length codes of one image.
        crowds: for each of the second, whether the intersection is divided by the first mask's own area instead, as
            COCO does for regions of a crowd.
    """
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    flags = [int(crowd) for crowd in crowds] if crowds is not None else [0] * len(second)
    return np.asarray(rle.iou(list(first), list(second), flags), dtype=float)


def empty_masks(codes: Sequence[dict[str, Any]]) -> Bool[np.ndarray, " masks"]:
    """Which masks have no pixel."""
    return np.asarray(rle.area(list(codes)) == 0) if len(codes) else np.zeros(0, dtype=bool)
