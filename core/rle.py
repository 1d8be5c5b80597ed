"""Masks as COCO run-length codes, ready for JSON, and back."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from core.errors import GroundingError


def encode_rle(mask: Bool[Tensor, "H W"]) -> dict:
    """COCO run-length code of a mask: {"size": [H, W], "counts": str}, ready for JSON."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_rle(code: dict) -> Bool[Tensor, "H W"]:
    """The mask of a COCO run-length code (compressed counts, as str or bytes).

    Raises:
        GroundingError: not such a code.
    """
    from pycocotools import mask as coco

    counts = code.get("counts")
    if not isinstance(counts, str | bytes) or len(code.get("size", ())) != 2:
        raise GroundingError(f"not a compressed COCO run-length code with 'size' and 'counts': {str(code)[:80]}")
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return torch.from_numpy(coco.decode({"size": list(code["size"]), "counts": counts}).astype(bool))
