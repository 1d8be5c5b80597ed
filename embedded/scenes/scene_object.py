"""One object of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SceneObject:
    """One object: its words, its visible pixels (`mask`, bool [H, W]), and where it is.

    `centre` is (x, y) and `scale` the longer side of the silhouette, both as a fraction of the image (width, height)
    and of its short side respectively. `box` is (x, y, width, height) in pixels, COCO's order.
    """

    category: str
    colour: str
    mask: np.ndarray
    box: tuple[float, float, float, float]
    centre: tuple[float, float]
    scale: float
