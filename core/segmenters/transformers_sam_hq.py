"""HQ-SAM as transformers' `SamHQModel`."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from core.segmenters.backend import Embedding
from core.segmenters.transformers_sam import TransformersSam


class TransformersSamHQ(TransformersSam):
    """A `SamHQModel`: beside the embedding, its decoder reads what the encoder's first global block made.

    The class hands masks back by falling score. Here they come in the order of its mask tokens, as those of all other
    segmenters, so that the last is the largest as a rule.
    """

    def named(self, found: Any) -> Embedding:
        """The model's embeddings by name."""
        embedding, blocks = found
        return {"embedding": embedding, "first_block": blocks[0]}

    def given(self, embedding: Embedding, batch: int) -> dict[str, Any]:
        """Named embeddings as the model's arguments."""
        return super().given(embedding, batch) | {"intermediate_embeddings": [embedding["first_block"]]}

    def decode(self, embedding: Embedding, **prompts: Any) -> tuple[Float[Tensor, "p m h w"], Float[Tensor, "p m"]]:
        """As the interface has it."""
        heard: list[Tensor] = []  # the scores of all mask tokens, before they are sorted
        head = self.model.mask_decoder.iou_prediction_head
        hook = head.register_forward_hook(lambda module, inputs, scores: heard.append(scores))
        try:
            logits, scores = super().decode(embedding, **prompts)
        finally:
            hook.remove()
        unsorted = heard[0].flatten(0, 1)[:, 1 : 1 + scores.shape[1]]
        place = unsorted.sort(dim=1, descending=True).indices.argsort(1)
        return logits.gather(1, place[..., None, None].expand_as(logits)), scores.gather(1, place)
