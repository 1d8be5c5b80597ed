"""Segment Anything by its own package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from core.segmenters.backend import Backend, Embedding

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


class SegmentAnything(Backend):
    """A `segment_anything.modeling.Sam`; images are encoded by `SamPredictor` itself."""

    def __init__(self, model: Sam):
        self.model = model.eval()
        self.side = model.image_encoder.img_size
        self.mask_side = model.prompt_encoder.mask_input_size[0]

    def embed(self, pixels: np.ndarray) -> Embedding:
        """As the interface has it."""
        from segment_anything import SamPredictor

        predictor = SamPredictor(self.model)
        predictor.set_image(pixels)
        return {"embedding": predictor.features}

    @torch.no_grad()
    def decode(
        self,
        embedding: Embedding,
        *,
        points: Float[Tensor, "p n 2"] | None = None,
        boxes: Float[Tensor, "p 4"] | None = None,
        masks: Float[Tensor, "p 1 S S"] | None = None,
    ) -> tuple[Float[Tensor, "p m h w"], Float[Tensor, "p m"]]:
        """What `SamPredictor.predict_torch` computes, without bringing all masks to the image's size."""
        prompts = self.model.prompt_encoder
        if points is not None:
            points = (points, torch.ones(points.shape[:2], dtype=torch.int, device=points.device))
        sparse, dense = prompts(points=points, boxes=boxes, masks=masks)
        return self.model.mask_decoder(
            image_embeddings=embedding["embedding"],
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )

    def masks(self, logits: Float[Tensor, "p m h w"], size: tuple[int, int]) -> Bool[Tensor, "p m H W"]:
        """As the interface has it."""
        return self.model.postprocess_masks(logits, self.input_size(size), size) > self.model.mask_threshold
