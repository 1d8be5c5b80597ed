"""Ovis2: a thumbnail of the whole image, and behind it square tiles of the squashed image, row by row."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from core.families.base import Family, Prepared
from core.geometry import View


class Ovis2(Family):
    """Views "base" (the image squashed to a square) and "grid" (the stitched tiles; the default).

    An image that one tile is enough for has the view "base" only.
    """

    def accepts_any_aspect(self, image: object) -> bool:
        """The number of tiles is bounded."""
        return True

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The prompt itself says how the tiles lie: tokens of their own part columns and rows."""
        side, box, tokenizer = (
            isqrt(int(self.processor.image_seq_length)),
            self.whole(prepared),
            self.processor.tokenizer,
        )
        ids = inputs["input_ids"][sample]
        rows = 1 + int((ids == tokenizer.convert_tokens_to_ids("<IMG_ROW>")).sum())
        columns = 1 + int((ids == tokenizer.convert_tokens_to_ids("<IMG_COL>")).sum()) // rows
        tiles = rows * columns if rows * columns > 1 else 0
        if count != (1 + tiles) * side * side:
            what = f"a thumbnail and {rows} x {columns} tiles, {side} x {side} each"
            raise self.mismatch((1 + tiles) * side * side, count, what)
        base = View("base", self.grid(0, side, side), box)
        return (base, View("grid", self.tiles(side * side, rows, columns, side), box)) if tiles else (base,)
