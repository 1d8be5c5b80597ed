"""A segmenter: prompts in pixels of the original image -> masks, scores, COCO run-length codes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from core.errors import GroundingError
from core.mask_prompts import bright_boxes, mask_inputs, shares
from core.rle import encode_rle
from core.segmenters.backend import Backend, Embedding
from core.segmenters.loading import load_backend
from core.segmenters.segment_anything import SegmentAnything

if TYPE_CHECKING:
    from PIL import Image
    from segment_anything.modeling import Sam

    from core.embeddings import EmbeddingFolder

MASK_CHOICES = {"last": 1, "best": 1, "all": 3}  # how to choose -> masks kept of each prompt's three
BYTES_AT_ONCE = 2**28  # decoded mask logits held at a time: 256 MB


@dataclass(frozen=True, eq=False)
class Masks:
    """Candidate masks of p prompts.

    Attributes:
        masks: bool [p, m, H, W] at the original image's size; m = 3 (small to large: part, whole, scene) unless
            chosen from.
        scores: float32 [p, m], the model's own estimate of each mask's IoU.
    """

    masks: Bool[Tensor, "p m H W"]
    scores: Float[Tensor, "p m"]


class Segmenter:
    """A segmentation model that encodes an image once and answers many prompts on it.

    Attributes:
        backend: the model behind it.
        name: for records and folders.
        embedding: of the image that is set.
        embeddings: where embeddings are kept, see `core.embeddings.keep_embeddings`.

    >>> import torch
    >>> from core import load_image, load_segmenter
    >>> segmenter = load_segmenter("embedded", device="cpu")
    >>> segmenter.set_image(load_image("embedded"))
    >>> segmenter.predict(torch.tensor([[40.5, 112.5]])).masks.shape
    torch.Size([1, 3, 320, 240])
    """

    def __init__(self, model: Backend | Sam, *, name: str = "custom"):
        """Take a backend, or a model of the segment-anything package."""
        self.backend = model if isinstance(model, Backend) else SegmentAnything(model)
        self.name = name
        self.embedding: Embedding = {}
        self.embeddings: EmbeddingFolder | None = None
        self._image_key: bytes | None = None
        self._image_size = (0, 0)

    @property
    def model(self) -> nn.Module:
        """The model with all its weights."""
        return self.backend.model

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the image that is set.

        Raises:
            GroundingError: no image is set.
        """
        if self._image_key is None:
            raise GroundingError("no image is set; call set_image(image) before asking for masks")
        return self._image_size

    def set_image(self, image: Image.Image | np.ndarray) -> None:
        """Encode an RGB image (PIL, or uint8 [H, W, 3]). The same pixels again cost nothing.

        Raises:
            GroundingError: not an RGB image, or so narrow that its short side vanishes at the model's resolution.
        """
        pixels = np.ascontiguousarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
            raise GroundingError(
                f"a segmenter needs an RGB image of uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}; "
                "open files with core.images.load_image"
            )
        key = hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes(), digest_size=32).digest()
        if key == self._image_key:
            return
        height, width = pixels.shape[:2]
        if min(self.backend.input_size((height, width))) < 1:
            raise GroundingError(
                f"an image of {height} x {width} pixels is too narrow to segment: scaled to {self.backend.side} pixels "
                "on its long side, nothing is left of the short one. Crop or pad it"
            )
        self._image_key = None  # an interrupted encoding leaves no image set
        known = None if self.embeddings is None else self.embeddings.read(key.hex())
        if known is not None:
            self.embedding = {name: tensor.to(self.backend.device) for name, tensor in known.items()}
        else:
            self.embedding = self.backend.encode(pixels)
            if self.embeddings is not None:
                self.embeddings.write(key.hex(), self.embedding)
        self._image_key, self._image_size = key, (height, width)

    def predict(self, points: Float[Tensor, "p 2"]) -> Masks:
        """Three masks for each positive point (x, y), in pixels of the original image.

        Masks of large images are large (H * W bytes each); `predict_in_parts` keeps a few at a time.

        Raises:
            GroundingError: no image is set, or a point lies outside it.
        """
        return _joined(list(self.predict_in_parts(points)), self.image_size)

    def predict_in_parts(self, points: Float[Tensor, "p 2"], *, choice: str = "all") -> Iterator[Masks]:
        """`predict`, a few prompts at a time, in order.

        Args:
            points: as for `predict`.
            choice: what is kept of each prompt's three masks, as in `choose`; only that is brought to the image's size.

        Raises:
            GroundingError: as for `predict`; unknown `choice`.
        """
        height, width = self.image_size
        inside = (points >= 0).all(1) & (points[:, 0] < width) & (points[:, 1] < height)
        if not inside.all():
            outside = [tuple(point) for point in points[~inside].tolist()]
            raise GroundingError(f"points (x, y) {outside} lie outside the image of {height} x {width} (H x W) pixels")
        # Segmenters count pixels: (0, 0) is the centre of the first one, half a pixel from our origin.
        for part in self._to_input(points - 0.5).split(self._prompts_at_once()):
            if len(part):
                yield self._decode(choice, points=part[:, None])

    def predict_from_boxes(self, boxes: Float[Tensor, "p 4"], *, choice: str = "all") -> Masks:
        """Three masks for each box (x0, y0, x1, y1), its edges in pixels of the original image.

        Raises:
            GroundingError: no image is set, an empty box or one that reaches outside the image, or unknown `choice`.
        """
        height, width = self.image_size
        least, most = boxes[:, :2], boxes[:, 2:]
        fits = (least >= 0).all(1) & (least < most).all(1) & (most[:, 0] <= width) & (most[:, 1] <= height)
        if not fits.all():
            wrong = [tuple(box) for box in boxes[~fits].tolist()]
            raise GroundingError(
                f"boxes (x0, y0, x1, y1) {wrong} are empty or reach outside the image of {height} x {width} (H x W) "
                "pixels"
            )
        counted = self._to_input((boxes - 0.5).view(-1, 2, 2)).view(-1, 4)
        parts = [self._decode(choice, boxes=part) for part in counted.split(self._prompts_at_once()) if len(part)]
        return _joined(parts, (height, width), MASK_CHOICES[choice])

    def predict_from_maps(
        self,
        maps: Float[Tensor, "p H W"],
        *,
        temperature: float | None = 2e-4,
        threshold: float = 0.75,
        choice: str = "all",
    ) -> Masks:
        """Three masks for each map, given as a mask prompt and the box around its bright pixels.

        The map, brought to 0..1, becomes logits (inverse sigmoid), resized to the model's mask input (256 on the long
        side for the released checkpoints, bicubic) and padded with 0.

        Args:
            maps: one map per prompt at the original image's size.
            temperature: attention that counts as 1; the map is divided by it and clipped. None stretches each map
                from its own minimum to its maximum instead (ours: a temperature fits one model's number of visual
                tokens).
            threshold: the box holds all pixels above this share; where there are none, the brightest pixel alone
                (ours: the released code then sends an empty box in the corner).
            choice: as for `predict_in_parts`.

        Raises:
            GroundingError: no image is set, or maps of another size, or values that are not finite; or the model takes
                no mask prompts.

        Source: the ablation of table 4 ("mask prompt"); temperature and threshold from the released code.
        """
        size, side = self.image_size, self.backend.mask_side
        if side is None:
            raise GroundingError(
                f"the segmenter {self.name!r} ({type(self.model).__name__}) takes no mask prompts; prompt it with "
                "points (the option sam_prompt 'point') or load another"
            )
        if maps.shape[1:] != size:
            raise GroundingError(f"maps of {tuple(maps.shape[1:])} (H, W) do not fit the image of {size}")
        if not torch.isfinite(maps).all():
            raise GroundingError("the maps hold values that are not finite; check the model's dtype (use float32)")
        parts = []
        for part in maps.split(self._prompts_at_once()):
            if len(part):
                bright = shares(part.to(torch.float32), temperature)
                boxes = self._to_input(bright_boxes(bright, threshold).view(-1, 2, 2)).view(-1, 4)
                inputs = mask_inputs(bright, self.backend.mask_size(size), side)
                parts.append(self._decode(choice, boxes=boxes, masks=inputs))
        return _joined(parts, size, MASK_CHOICES[choice])

    def _to_input(self, places: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """(x, y) in counted pixels of the original image -> of the model's input."""
        (height, width), (high, wide) = self.image_size, self.backend.input_size(self.image_size)
        return places.to(torch.float32) * torch.tensor([wide / width, high / height], device=places.device)

    def _decode(self, choice: str, **prompts: Tensor) -> Masks:
        """The masks of prompts. Of the three of each only those that are kept are brought to the image's size, which
        is most of the work.
        """
        given = {name: prompt.to(self.backend.device) for name, prompt in prompts.items()}
        small, scores = self.backend.decode(self.embedding, **given)
        kept = _kept(scores, choice)
        small, scores = small.gather(1, kept[..., None, None].expand(-1, -1, *small.shape[2:])), scores.gather(1, kept)
        return Masks(self.backend.masks(small, self.image_size).cpu(), scores.to("cpu", torch.float32))

    def _prompts_at_once(self) -> int:
        height, width = self.image_size
        return max(1, BYTES_AT_ONCE // (3 * 4 * max(height * width, self.backend.side**2)))


def load_segmenter(
    name: str = "embedded",
    *,
    model_type: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
) -> Segmenter:
    """Load Segment Anything, or another segmenter that takes points.

    Args:
        name: "embedded"; a directory with `config.json` (arguments of `core.sam.build_sam`) and `model.safetensors`; a
            checkpoint of the segment-anything package (`sam_vit_h_4b8939.pth`, ViT-L, ViT-B or the like, fine-tuned or
            not); or a hub id or `save_pretrained` directory of a transformers model
            (`core.segmenters.loading.BACKENDS`), such as "facebook/sam2.1-hiera-large".
        model_type: of a segment-anything checkpoint, "vit_h", "vit_l" or "vit_b"; None reads it from there.
        device: "auto" (a CUDA device if there is one, else the CPU) or a torch device.
        dtype: what the image encoder computes in; everything else stays float32. "auto" is bfloat16 on a CUDA device
            (float16 on one without it) and float32 elsewhere.

    Raises:
        GroundingError: the file is missing, is no checkpoint, does not fit the model, or holds no segmenter known here;
            or an unknown dtype.

    >>> from core import load_segmenter
    >>> load_segmenter("embedded", device="cpu").name
    'embedded'
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    precision = _precision(dtype, where)
    backend = load_backend(name, model_type=model_type)
    backend.model.to(where)
    backend.precision = precision
    path = Path(name)
    return Segmenter(backend, name=path.name if path.is_file() else str(name))


def _precision(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in (*known, *known.values()):
        raise GroundingError(f"a segmenter's dtype is one of auto, {', '.join(known)}, not {dtype!r}")
    return known.get(dtype, dtype)


def choose(masks: Masks, how: str = "last") -> Masks:
    """Keep of each prompt's three masks the last (the largest as a rule), the best by score, or all.

    Raises:
        GroundingError: unknown `how`.

    Source: the paper leaves it open; the released code keeps the last, and all three in the pilot study.
    """
    kept = _kept(masks.scores, how)
    if how == "all" or masks.scores.shape[1] == 0:
        return masks
    prompts = torch.arange(len(kept))[:, None]
    return Masks(masks.masks[prompts, kept], masks.scores[prompts, kept])


def _kept(scores: Float[Tensor, "p m"], how: str) -> Int64[Tensor, "p kept"]:
    """Which of each prompt's masks are kept.

    Raises:
        GroundingError: unknown `how`.
    """
    if how not in MASK_CHOICES:
        raise GroundingError(f"mask choice {how!r} is not known; choose one of {', '.join(MASK_CHOICES)}")
    p, m = scores.shape
    if how == "all" or m == 0:
        return torch.arange(m, device=scores.device).expand(p, m)
    if how == "best":
        return scores.argmax(1, keepdim=True)
    return torch.full((p, 1), m - 1, device=scores.device)


def encode_chosen(parts: Iterable[Masks], how: str) -> tuple[tuple[tuple[dict, ...], ...], Float[Tensor, "p m"]]:
    """What `choose` keeps of some prompts' masks, which come a few at a time: run-length codes and scores by prompt."""
    codes: list[tuple[dict, ...]] = []
    scores = []
    for part in parts:
        chosen = choose(part, how)
        codes += [tuple(encode_rle(mask) for mask in masks) for masks in chosen.masks]
        scores.append(chosen.scores)
    return tuple(codes), torch.cat(scores) if scores else torch.zeros(0, MASK_CHOICES[how])


def _joined(parts: list[Masks], size: tuple[int, int], kept: int = 3) -> Masks:
    if not parts:
        return Masks(torch.zeros(0, kept, *size, dtype=torch.bool), torch.zeros(0, kept))
    return Masks(torch.cat([part.masks for part in parts]), torch.cat([part.scores for part in parts]))
