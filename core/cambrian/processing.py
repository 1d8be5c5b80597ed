"""Pictures and prompts for Cambrian-1: one padded square for each encoder, one slot for each cell and newline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, no_type_check

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images

from core.cambrian.geometry import kept_shape
from core.images import pad_to_square
from core.prompts import IMAGE


@no_type_check  # transformers gives it keywords of its own
class CambrianImageProcessor(BaseImageProcessor):
    """Pictures as each encoder wants them.

    Args:
        towers: for each encoder a dict with `size` (pixels along a side), `fill` (red, green, blue of the padding,
            0..255), `mean` and `std` (its normalisation).
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.towers = [{key: given[key] for key in ("size", "fill", "mean", "std")} for given in towers or []]

    def preprocess(self, images: Any, return_tensors: str | None = None, **unused: Any) -> BatchFeature:
        """`pixel_values` float32 [b, p], what all towers see of each picture, flat, one square after the other; and
        `image_sizes` int64 [b, 2], (H, W) of the originals.

        Source: `process_images` of the published code: a square with the encoder's colour around the picture, resized
        (bicubic) to the encoder's size.
        """
        pictures = [to_pil_image(each).convert("RGB") for each in make_flat_list_of_images(self.fetch_images(images))]
        pixels = [torch.cat([square(picture, given).flatten() for given in self.towers]) for picture in pictures]
        sizes = torch.tensor([(picture.height, picture.width) for picture in pictures])
        return BatchFeature({"pixel_values": torch.stack(pixels), "image_sizes": sizes}, tensor_type=return_tensors)


@no_type_check  # transformers reads the arguments off its __init__
class CambrianProcessor(ProcessorMixin):
    """Tokenizer and image processor in one.

    Args:
        image_processor, tokenizer, chat_template: as of any processor; the tokenizer knows the image token.
        side: cells along one side of the grid before the padding is taken off.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, side: int = 24, chat_template: str | None = None
    ):
        self.side, self.image_token = side, IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **unused: Any) -> str:
        """The placeholder once for each cell and each row's newline."""
        height, width = image_inputs["image_sizes"][image_idx].tolist()
        h, w = kept_shape((height, width), self.side)
        return self.image_token * (h * (w + 1))


def square(picture: Image.Image, given: dict[str, Any]) -> torch.Tensor:
    """float32 [3, size, size]: an RGB picture as one encoder sees it."""
    padded = pad_to_square(picture, tuple(given["fill"])).resize((given["size"],) * 2)
    pixels = torch.from_numpy(np.asarray(padded, np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(given[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / std
