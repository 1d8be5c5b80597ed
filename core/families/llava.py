"""LLaVA 1.5 and VipLLaVA: one square grid; the processor crops the centre of the image, or pads it to a square."""

from __future__ import annotations

from math import ceil
from typing import Any

from PIL import Image
from torch import Tensor, nn

from core.errors import GroundingError
from core.families.base import Family, Prepared
from core.geometry import View
from core.images import centred_offset, pad_to_square


class Llava(Family):
    """LLaVA with a ViT (CLIP, SigLIP) that sees one square picture."""

    def __init__(self, model: nn.Module, processor: Any, *, geometry: str = "processor"):
        super().__init__(model, processor, geometry=geometry)
        vision = model.config.vision_config
        self.patch = int(getattr(vision, "patch_size", None) or processor.patch_size)
        if processor.patch_size is None:  # checkpoints from before the processor expanded the placeholder
            processor.patch_size = self.patch
            strategy = getattr(model.config, "vision_feature_select_strategy", "default")  # VipLLaVA knows no other
            processor.vision_feature_select_strategy = strategy
            processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")

    def prepare(self, image: Image.Image) -> Prepared:
        """Pad to a square with the mean colour, centred, where asked for and where the processor would crop."""
        width, height = image.size
        if self.geometry == "processor" or self._sees_everything(height, width):
            return super().prepare(image)
        colour = tuple(int(channel * 255) for channel in self.processor.image_processor.image_mean)
        return Prepared(pad_to_square(image, colour), (height, width), centred_offset(image))

    def accepts_any_aspect(self, image: Image.Image) -> bool:
        """Padding and squashing make a square; keeping the shortest edge does not."""
        return bool(getattr(self.processor.image_processor, "do_pad", False)) or not self._keeps_aspect()

    def views(self, inputs: dict[str, Tensor], sample: int, count: int, prepared: Prepared) -> tuple[View, ...]:
        """One view, "image"."""
        height, width = inputs["pixel_values"].shape[-2:]
        h, w = int(height) // self.patch, int(width) // self.patch
        extra = count - h * w  # a class token in front when the feature strategy is "full"
        if extra not in (0, 1):
            raise self.mismatch(h * w, count, f"a grid of {h} x {w}")
        x0, y0, x1, y1 = self._box(prepared.image.height, prepared.image.width, h * self.patch, w * self.patch)
        dx, dy = prepared.offset
        return (View("image", self.grid(extra, h, w), (x0 - dx, y0 - dy, x1 - dx, y1 - dy)),)

    def _keeps_aspect(self) -> bool:
        size = self.processor.image_processor.size
        return bool(self.processor.image_processor.do_resize and size.get("shortest_edge"))

    def _sees_everything(self, height: int, width: int) -> bool:
        """Whether the processor's own box covers the whole image."""
        processor = self.processor.image_processor
        if height == width or getattr(processor, "do_pad", False):
            return True
        if not processor.do_center_crop:
            return not self._keeps_aspect()
        crop = processor.crop_size
        x0, y0, x1, y1 = self._box(height, width, crop["height"], crop["width"])
        return x0 <= 0 and y0 <= 0 and x1 >= width and y1 >= height

    def _box(self, height: int, width: int, rows: int, columns: int) -> tuple[float, float, float, float]:
        """What the first `rows` x `columns` pixels after processing cover of a (height, width) image."""
        processor = self.processor.image_processor
        pad_x = pad_y = 0
        if getattr(processor, "do_pad", False):  # LlavaImageProcessor pads before it resizes
            side = max(height, width)
            pad_x, pad_y, height, width = (side - width) // 2, (side - height) // 2, side, side
        new_h, new_w = self._resized(height, width)
        top = left = 0
        if processor.do_center_crop:
            crop, slow = processor.crop_size, getattr(processor, "backend", "") == "pil"
            top, left = _crop_start(new_h, crop["height"], slow), _crop_start(new_w, crop["width"], slow)
        x0, x1 = left * width / new_w, (left + columns) * width / new_w
        y0, y1 = top * height / new_h, (top + rows) * height / new_h
        return x0 - pad_x, y0 - pad_y, x1 - pad_x, y1 - pad_y

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) after the processor's resize: the shortest edge fixed, the long one truncated, or both fixed."""
        processor = self.processor.image_processor
        if not processor.do_resize:
            return height, width
        size = processor.size
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        edge = size.get("shortest_edge")
        if not edge or size.get("longest_edge"):
            raise GroundingError(
                f"the image processor resizes by {dict(size)}; LLaVA processors have 'shortest_edge', or 'height' and "
                "'width'"
            )
        long = int(edge * max(height, width) / min(height, width))
        return (long, int(edge)) if width <= height else (int(edge), long)


def _crop_start(length: int, crop: int, slow: bool) -> int:
    """First pixel of a centre crop on an axis; negative where the axis is shorter than the crop and padded."""
    if length >= crop:
        return int((length - crop) / 2)
    return -ceil((crop - length) / 2) if slow else -((crop - length) // 2)
