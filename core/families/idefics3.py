"""Idefics3, SmolVLM: square tiles of the image, row by row, and behind them a thumbnail of the whole."""

from __future__ import annotations

import re
from math import isqrt

from torch import Tensor, nn

from core.families.base import Family, Prepared
from core.geometry import View


class Idefics3(Family):
    """Views "base" (the image squashed to a square) and "grid" (the stitched tiles; the default).

    An image that is not split has the view "base" only. Both sides are rounded up to whole tiles separately, so that
    both views cover all of the image.
    """

    @property
    def text_model(self) -> nn.Module:
        """The decoder whose attention is captured."""
        return self.model.model.text_model

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """The prompt itself says how the tiles lie: `<row_i_col_j>` stands in front of each."""
        side, box = isqrt(int(self.processor.image_seq_len)), self.whole(prepared)
        text = self.processor.tokenizer.decode(inputs["input_ids"][sample])
        places = re.findall(r"<row_(\d+)_col_(\d+)>", text)
        rows = max((int(row) for row, _ in places), default=0)
        columns = max((int(column) for _, column in places), default=0)
        tiles = rows * columns * side * side
        if count != tiles + side * side:
            raise self.mismatch(tiles + side * side, count, f"{rows} x {columns} tiles and one, {side} x {side} each")
        base = View("base", self.grid(tiles, side, side), box)
        return (base, View("grid", self.tiles(0, rows, columns, side), box)) if tiles else (base,)
