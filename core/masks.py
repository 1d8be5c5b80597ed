"""Segment Anything: prompts in pixels of the original image -> masks, scores, COCO run-length codes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from core.errors import GroundingError
from core.sam import load_sam
from core.weights import weights_path

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
        scores: float32 [p, m], Segment Anything's own estimate of each mask's IoU.
    """

    masks: Bool[Tensor, "p m H W"]
    scores: Float[Tensor, "p m"]


class Segmenter:
    """A Segment Anything model that encodes an image once and answers many prompts on it.

    >>> import torch
    >>> from core import load_image, load_segmenter
    >>> segmenter = load_segmenter("embedded", device="cpu")
    >>> segmenter.set_image(load_image("embedded"))
    >>> segmenter.predict(torch.tensor([[40.5, 112.5]])).masks.shape
    torch.Size([1, 3, 320, 240])
    """

    def __init__(self, model: Sam, *, name: str = "custom"):
        from segment_anything import SamPredictor

        self.name = name
        self.predictor = SamPredictor(model.eval())
        self._image_key: bytes | None = None
        self.embeddings: EmbeddingFolder | None = None  # see `core.embeddings.keep_embeddings`

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the image that is set.

        Raises:
            GroundingError: no image is set.
        """
        if self._image_key is None:
            raise GroundingError("no image is set; call set_image(image) before asking for masks")
        return tuple(self.predictor.original_size)

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
        side = self.predictor.transform.target_length
        if int(min(height, width) * side / max(height, width) + 0.5) < 1:
            raise GroundingError(
                f"an image of {height} x {width} pixels is too narrow to segment: scaled to {side} pixels on its "
                "long side, nothing is left of the short one. Crop or pad it"
            )
        self._image_key = None  # an interrupted encoding leaves no image set
        known = None if self.embeddings is None else self.embeddings.read(key.hex())
        if known is not None:
            self._restore(known, (height, width))
        else:
            self.predictor.set_image(pixels)
            if self.embeddings is not None:
                self.embeddings.write(key.hex(), self.predictor.features)
        self._image_key = key

    def _restore(self, embedding: Tensor, size: tuple[int, int]) -> None:
        """Put the predictor into the state in which encoding an image of this size would have left it."""
        predictor = self.predictor
        predictor.reset_image()
        predictor.features = embedding.to(predictor.device, next(predictor.model.parameters()).dtype)
        predictor.original_size = size
        predictor.input_size = predictor.transform.get_preprocess_shape(*size, predictor.transform.target_length)
        predictor.is_image_set = True

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
        # Segment Anything counts pixels: (0, 0) is the centre of the first one, half a pixel from our origin.
        counted = self.predictor.transform.apply_coords_torch(points[:, None] - 0.5, (height, width))
        for part in counted.split(self._prompts_at_once()):
            if len(part):
                coords = part.to(self.predictor.device, torch.float32)
                labels = torch.ones(coords.shape[:2], dtype=torch.int, device=coords.device)
                yield self._decode(choice, points=(coords, labels))

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
            GroundingError: no image is set, or maps of another size, or values that are not finite.

        Source: the ablation of table 4 ("mask prompt"); temperature and threshold from the released code.
        """
        height, width = self.image_size
        if maps.shape[1:] != (height, width):
            raise GroundingError(f"maps of {tuple(maps.shape[1:])} (H, W) do not fit the image of {(height, width)}")
        if not torch.isfinite(maps).all():
            raise GroundingError("the maps hold values that are not finite; check the model's dtype (use float32)")
        parts = []
        for part in maps.split(self._prompts_at_once()):
            if len(part):
                shares = _shares(part.to(torch.float32), temperature)
                boxes = self.predictor.transform.apply_boxes_torch(_boxes(shares, threshold), (height, width))
                inputs = self._mask_inputs(torch.logit(shares, eps=1e-3))
                device = self.predictor.device
                parts.append(self._decode(choice, boxes=boxes.to(device), masks=inputs.to(device)))
        return _joined(parts, (height, width), MASK_CHOICES[choice])

    @torch.no_grad()
    def _decode(self, choice: str, **prompts: Any) -> Masks:
        """What `SamPredictor.predict_torch` answers to prompts, but of the three masks only those that are kept are
        brought to the image's size, which is most of the work.
        """
        predictor, model = self.predictor, self.predictor.model
        sparse, dense = model.prompt_encoder(**{"points": None, "boxes": None, "masks": None} | prompts)
        small, scores = model.mask_decoder(
            image_embeddings=predictor.features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        kept = _kept(scores, choice)
        small, scores = small.gather(1, kept[..., None, None].expand(-1, -1, *small.shape[2:])), scores.gather(1, kept)
        logits = model.postprocess_masks(small, predictor.input_size, predictor.original_size)
        return Masks((logits > model.mask_threshold).cpu(), scores.to("cpu", torch.float32))

    def _mask_inputs(self, logits: Float[Tensor, "p H W"]) -> Float[Tensor, "p 1 S S"]:
        side = self.predictor.model.prompt_encoder.mask_input_size[0]
        height, width = logits.shape[1:]
        small = [max(1, int(length / max(height, width) * side)) for length in (height, width)]
        resized = torch.nn.functional.interpolate(logits[:, None], small, mode="bicubic", align_corners=False)
        return torch.nn.functional.pad(resized, (0, side - small[1], 0, side - small[0]))

    def _prompts_at_once(self) -> int:
        height, width = self.image_size
        side = self.predictor.transform.target_length
        return max(1, BYTES_AT_ONCE // (3 * 4 * max(height * width, side * side)))


def load_segmenter(name: str = "embedded", *, model_type: str | None = None, device: str = "auto") -> Segmenter:
    """Load Segment Anything.

    Args:
        name: "embedded"; a directory with `config.json` (arguments of `core.sam.build_sam`) and
            `model.safetensors`; or a checkpoint of the segment-anything package (`sam_vit_h_4b8939.pth`, ViT-L, ViT-B
            or the like, fine-tuned or not).
        model_type: "vit_h", "vit_l" or "vit_b"; None reads it from the checkpoint.
        device: "auto" (a CUDA device if there is one, else the CPU) or a torch device.

    Raises:
        GroundingError: the file is missing, is no checkpoint, or does not fit the model.

    >>> from core import load_segmenter
    >>> load_segmenter("embedded", device="cpu").name
    'embedded'
    """
    path = weights_path("sam") if name in ("embedded", "embedded/sam") else Path(name)
    model = load_sam(path, model_type)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return Segmenter(model.to(where), name=name if path.is_dir() else path.name)


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


def encode_rle(mask: Bool[Tensor, "H W"]) -> dict:
    """COCO run-length code of a mask: {"size": [H, W], "counts": str}, ready for JSON."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_rle(code: dict) -> Bool[Tensor, "H W"]:
    """The mask of a COCO run-length code (compressed counts, as str or bytes).

    Raises:
        GroundingError: not such a code.
    """
    from pycocotools import mask as coco

    counts = code.get("counts")
    if not isinstance(counts, str | bytes) or len(code.get("size", ())) != 2:
        raise GroundingError(f"not a compressed COCO run-length code with 'size' and 'counts': {str(code)[:80]}")
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return torch.from_numpy(coco.decode({"size": list(code["size"]), "counts": counts}).astype(bool))


def _shares(maps: Float[Tensor, "p H W"], temperature: float | None) -> Float[Tensor, "p H W"]:
    if temperature is not None:
        if temperature <= 0:
            raise GroundingError(f"the mask prompt's temperature must be positive or None, not {temperature}")
        return (maps / temperature).clamp(0, 1)
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp(min=torch.finfo(torch.float32).tiny)


def _boxes(shares: Float[Tensor, "p H W"], threshold: float) -> Float[Tensor, "p 4"]:
    """(x0, y0, x1, y1) around the pixels above the threshold, or around the brightest pixel; x1 and y1 as the
    released code has them.
    """
    boxes = []
    for share in shares:
        bright = share > threshold
        if not bright.any():
            bright = torch.zeros_like(bright)
            bright.view(-1)[share.argmax()] = True
        rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)


def _joined(parts: list[Masks], size: tuple[int, int], kept: int = 3) -> Masks:
    if not parts:
        return Masks(torch.zeros(0, kept, *size, dtype=torch.bool), torch.zeros(0, kept))
    return Masks(torch.cat([part.masks for part in parts]), torch.cat([part.scores for part in parts]))
