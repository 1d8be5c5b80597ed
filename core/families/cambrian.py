"""Cambrian-1: one grid over the picture padded to a square, without the padding; every row ends in a newline."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from core.cambrian.geometry import kept_shape, padding
from core.errors import GroundingError
from core.families.base import Family, Prepared
from core.geometry import View
from core.images import centred_offset


class Cambrian(Family):
    """One view, "image". On the padded axis it sticks out of the picture or misses some of it, less than half a cell at
    each end, as the model rounds to whole cells.

    A cell is where its queries ask. One of the four encoders, SigLIP, leaves 6 of its 384 pixels unseen at the right
    and at the bottom, so that its features lie up to 1.6 % of the side nearer to the top left.
    """

    def prepare(self, image: Image.Image) -> Prepared:
        """The image as it is.

        Raises:
            GroundingError: the image is so long that no cell of it is left once the padding is off.
        """
        side = self.processor.side
        if 0 in kept_shape((image.height, image.width), side):
            raise GroundingError(
                f"the image of {image.width} x {image.height} pixels is more than {side} times as long as wide, so "
                f"that nothing is left of it on a grid of {side} x {side} cells; crop it first"
            )
        return Prepared(image, (image.height, image.width))

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """One view, "image"."""
        side, size = self.processor.side, prepared.size
        h, w = kept_shape(size, side)
        if count != h * (w + 1):
            raise self.mismatch(h * (w + 1), count, f"{h} rows of {w} cells and a newline")
        rows, columns = padding(size, side)
        dx, dy = centred_offset(prepared.image)
        cell = max(size) / side  # pixels
        box = (columns * cell - dx, rows * cell - dy, (side - columns) * cell - dx, (side - rows) * cell - dy)
        return (View("image", self.grid(0, h, w, row_length=w + 1), box),)
