"""Segment Anything as transformers' `SamModel`, and what its other segmenters have in common with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.errors import GroundingError
from core.segmenters.backend import Backend, Embedding


class TransformersSam(Backend):
    """A `SamModel` with its image processor. Another class of transformers differs in how its embeddings are named and
    handed back, and in whether the image keeps its ratio.
    """

    def __init__(self, model: nn.Module, processor: Any):
        """Join a model and its image processor.

        Raises:
            GroundingError: they disagree about the size of the input.
        """
        self.model, self.processor = model.eval(), processor
        prompts = model.prompt_encoder
        self.side = prompts.input_image_size
        self.mask_side = 4 * prompts.image_embedding_size[0]
        made = processor.size["height"] if self.stretches else processor.size["longest_edge"]
        if made != self.side:
            raise GroundingError(
                f"the image processor makes images of {made} pixels and the model takes {self.side}; the directory "
                "needs the preprocessor_config.json that belongs to its weights"
            )

    def embed(self, pixels: np.ndarray) -> Embedding:
        """As the interface has it."""
        inputs = self.processor(images=[pixels.copy()], input_data_format="channels_last", return_tensors="pt")
        return self.named(self.model.get_image_embeddings(inputs["pixel_values"].to(self.device)))

    def named(self, found: Any) -> Embedding:
        """The model's embeddings by name."""
        return {"embedding": found}

    def given(self, embedding: Embedding, batch: int) -> dict[str, Any]:
        """Named embeddings as the model's arguments, for so many images that are all the same."""
        return {"image_embeddings": embedding["embedding"].expand(batch, -1, -1, -1)}

    @torch.no_grad()
    def decode(
        self,
        embedding: Embedding,
        *,
        points: Float[Tensor, "p n 2"] | None = None,
        boxes: Float[Tensor, "p 4"] | None = None,
        masks: Float[Tensor, "p 1 S S"] | None = None,
    ) -> tuple[Float[Tensor, "p m h w"], Float[Tensor, "p m"]]:
        """As the interface has it. Of points and boxes transformers takes many for one image, of masks a single one:
        with masks, the image is given once for each.
        """
        batch = 1 if masks is None else len(masks)
        found = self.model(
            **self.given(embedding, batch),
            input_points=None if points is None else points.reshape(batch, -1, *points.shape[1:]),
            input_boxes=None if boxes is None else boxes.reshape(batch, -1, 4),
            input_masks=masks,
            multimask_output=True,
        )
        return found.pred_masks.flatten(0, 1), found.iou_scores.flatten(0, 1)

    def masks(self, logits: Float[Tensor, "p m h w"], size: tuple[int, int]) -> Bool[Tensor, "p m H W"]:
        """As the interface has it."""
        (found,) = self.processor.post_process_masks([logits], [size], [self.input_size(size)])
        return found
