"""SAM 2 and 2.1, and the models built like it (the tracker of SAM 3, EdgeTAM), as transformers' own classes."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from core.segmenters.backend import Embedding
from core.segmenters.transformers_sam import TransformersSam


class TransformersSam2(TransformersSam):
    """A `Sam2Model`, `Sam3TrackerModel` or `EdgeTamModel`: features of several levels, fine to coarse; the image is
    stretched to the square.
    """

    stretches: ClassVar[bool] = True

    def named(self, found: Any) -> Embedding:
        """The model's embeddings by name."""
        return {f"level_{i}": level for i, level in enumerate(found)}

    def given(self, embedding: Embedding, batch: int) -> dict[str, Any]:
        """Named embeddings as the model's arguments; the finer levels are the same for every prompt."""
        *fine, coarse = (embedding[name] for name in sorted(embedding))
        return {"image_embeddings": [*fine, coarse.expand(batch, -1, -1, -1)]}

    def masks(self, logits: Float[Tensor, "p m h w"], size: tuple[int, int]) -> Bool[Tensor, "p m H W"]:
        """As the interface has it."""
        (found,) = self.processor.post_process_masks([logits], [size])
        return found
