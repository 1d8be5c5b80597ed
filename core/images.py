"""Open any image as an upright 8-bit RGB picture, or say clearly why not."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from core.errors import GroundingError
from core.weights import SCENE

_PAPER = (255, 255, 255)  # what shows through transparent pixels
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # the EXIF tag
_BROKEN_FILE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def load_image(source: Any) -> Image.Image:
    """Open an image as RGB, upright, 8 bits per channel.

    Transparency is laid on white, 16-bit greys are scaled to 8 bits, the EXIF orientation is applied, and of several
    frames the first is taken. The source is not changed.

    Args:
        source: a path ("embedded" for the scene that comes with the package), the bytes of a file, a binary file
            object, a PIL image, or a numpy array [H, W], [H, W, 1] (grey), [H, W, 2] (grey, alpha), [H, W, 3] (RGB) or
            [H, W, 4] (RGBA) of dtype uint8, uint16, bool, float in 0..1, or another integer type with values in 0..255.

    Returns:
        A loaded PIL image of mode "RGB"; its `size` is (W, H).

    Raises:
        GroundingError: no such file, not an image, truncated or corrupt, more pixels than PIL's limit against
            decompression bombs, or an array of another shape, dtype or range.

    >>> from core import load_image
    >>> load_image("embedded").size
    (240, 320)
    """
    if isinstance(source, Image.Image):
        return _finish(source, name="the PIL image")
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), name="the array")
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(io.BytesIO(bytes(source)), name=f"the {len(source)} bytes given")
    if isinstance(source, str | os.PathLike):
        return _open_path(source)
    if hasattr(source, "read"):
        return _open(source, name=f"the file object {getattr(source, 'name', source)!r}")
    raise GroundingError(
        f"cannot read an image from {type(source).__name__}; give a path, bytes, a PIL image or a numpy array"
    )


def _open_path(source: str | os.PathLike) -> Image.Image:
    path = os.fspath(source)
    if path == "embedded":
        path = str(SCENE)
    if isinstance(path, str) and path.split("://")[0] in ("http", "https", "s3", "gs", "ftp"):
        raise GroundingError(f"{path!r} is an address; download the image and give the path of the file")
    if not os.path.isfile(path):
        reason = "is a directory" if os.path.isdir(path) else "does not exist"
        raise GroundingError(f"the image file {path!r} {reason}; give the path of an image")
    return _open(path, name=f"the image file {path!r}")


def _open(file: Any, *, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but under the limit of the error
            with Image.open(file) as image:
                return _finish(image, name=name)
    except GroundingError:
        raise
    except UnidentifiedImageError as error:
        raise GroundingError(f"{name} is not an image that PIL can read; convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise GroundingError(
            f"{name} has more pixels than PIL's limit of {limit:,} ({error}); make it smaller, or, if you trust the "
            "file, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except _BROKEN_FILE as error:
        raise _corrupt(name, error) from error


def _finish(image: Image.Image, *, name: str) -> Image.Image:
    if 0 in image.size:
        raise GroundingError(f"{name} is empty: its size is {image.width} x {image.height} pixels")
    try:
        with _truncation_is_an_error():
            image.load()
    except _BROKEN_FILE as error:
        raise _corrupt(name, error) from error
    return _to_rgb(_upright(image), name=name)


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """PIL's own rule, whatever other libraries of this process have set: some ask for grey in place of lost pixels."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _corrupt(name: str, error: Exception) -> GroundingError:
    return GroundingError(f"{name} is truncated or corrupt ({error}); fetch or export it again")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except _BROKEN_FILE:
        return image  # unreadable EXIF says nothing about orientation; the pixels are fine


def _to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _deep_grey(np.asarray(image), name=f"{name} (mode {image.mode})").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image  # premultiplied grey has no way to RGBA
        rgba = image.convert("RGBA")
        paper = Image.new("RGB", image.size, _PAPER)
        paper.paste(rgba, mask=rgba.getchannel("A"))
        return paper
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise GroundingError(f"{name} has the colour mode {image.mode}; convert it to RGB first") from error


def _deep_grey(values: np.ndarray, *, name: str) -> Image.Image:
    """8-bit grey from 16-bit counts or from floats in 0..1 (or 0..255)."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        scale = 255.0 if high <= 1 else 1.0
        inside = low >= 0 and high <= 255  # also false for NaN
    else:
        scale = 255.0 / 65535.0
        inside = low >= 0 and high <= 65535
    if not inside:
        raise GroundingError(
            f"{name} has values from {low:g} to {high:g}; scale them to 8 or 16 bits (or floats to 0..1) first"
        )
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        hint = "; move the channels to the last axis" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise GroundingError(f"an image array has shape [H, W] or [H, W, 1 to 4], got {list(array.shape)}{hint}")
    if array.size == 0:
        raise GroundingError(f"the image array is empty: its shape is {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array)))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.rint(array * (255.0 / 65535.0)).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise GroundingError(f"an image array is uint8, uint16, bool or float in 0..1, got dtype {array.dtype}")
    low, high = float(array.min()), float(array.max())
    limit = 1.0 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= limit):
        raise GroundingError(f"an image array of {array.dtype} has values in 0..{limit:g}, got {low:g} to {high:g}")
    return np.rint(array * (255.0 if array.dtype.kind == "f" else 1)).astype(np.uint8)


def centred_offset(image: Image.Image) -> tuple[int, int]:
    """Where (left, top) the image stands in the square that `pad_to_square` makes of it, in whole pixels."""
    side = max(image.size)
    return (side - image.width) // 2, (side - image.height) // 2


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The RGB image in the middle of a square of that colour; a square image as it is.

    Source: LLaVA's `expand2square`.
    """
    if image.width == image.height:
        return image
    square = Image.new("RGB", (max(image.size),) * 2, colour)
    square.paste(image, centred_offset(image))
    return square
