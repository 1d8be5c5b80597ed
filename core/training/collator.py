"""Samples side by side: right-padded ids, labels, and the pictures in the samples' order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core.training.templates import IGNORE


@dataclass(frozen=True)
class Collator:
    """A batch for `LlavaForConditionalGeneration`.

    A batch without any picture gets a blank one, behind the end of its first sample where nothing attends to it and
    nothing is learnt. So the projector takes part in every step, with a gradient of zero, which data-parallel training
    (DDP, FSDP, DeepSpeed) relies on. LLaVA does the same with a black picture per sample.

    Fields:
        pad_id: what the ids are padded with; padding is masked, whatever its id.
        image_id: id of the image token.
        visual_tokens: number of visual tokens of a picture.
        blank: pixel values of the blank picture.
    """

    pad_id: int
    image_id: int
    visual_tokens: int
    blank: Float[Tensor, "3 H W"]

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """input_ids, labels, attention_mask int64 [b, s]; pixel_values [number of pictures, 3, H, W]."""
        ids = [item["input_ids"] for item in items]
        labels = [item["labels"] for item in items]
        masks = [torch.ones_like(one) for one in ids]
        pictures = [item["pixel_values"] for item in items if item["pixel_values"] is not None]
        if not pictures:
            pictures = [self.blank]
            behind = torch.full((self.visual_tokens,), self.image_id)
            ids[0] = torch.cat([ids[0], behind])
            labels[0] = torch.cat([labels[0], torch.full_like(behind, IGNORE)])
            masks[0] = torch.cat([masks[0], torch.zeros_like(behind)])
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
            "attention_mask": pad_sequence(masks, batch_first=True, padding_value=0),
            "pixel_values": torch.stack(pictures),
        }
