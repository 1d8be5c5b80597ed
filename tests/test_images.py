"""Every kind of image file gives the right upright RGB picture, or a clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from core.errors import GroundingError
from core.images import load_image

RGB = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_path_bytes_file_object_pil_and_array_agree(tmp_path):
    path = tmp_path / "ä b.png"
    data = saved(Image.fromarray(RGB))
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (path, str(path), data, bytearray(data), io.BytesIO(data), file, Image.fromarray(RGB), RGB):
            np.testing.assert_array_equal(pixels(source), RGB)
    assert load_image(path).size == (31, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode):
    image = Image.fromarray(RGB).convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 20))
    alpha.paste(128, (10, 0, 20, 20))
    image.putalpha(alpha)
    opaque = np.asarray(image.convert("RGB"), dtype=float)
    found = pixels(saved(image)).astype(float)
    assert (found[:, :10] == 255).all()
    np.testing.assert_allclose(found[:, 10:20], opaque[:, 10:20] * 128 / 255 + 255 * 127 / 255, atol=1)
    np.testing.assert_array_equal(found[:, 20:], opaque[:, 20:])


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_transparency_lies_on_white(mode):
    image = Image.new(mode.upper(), (4, 3), (100,) * (len(mode) - 1) + (128,)).convert(mode)
    np.testing.assert_allclose(pixels(image), round(100 * 128 / 255 + 127), atol=1)


def test_grey_palette_bilevel():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1))
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(pixels(saved(palette)), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(grey).convert("1")
    np.testing.assert_array_equal(pixels(saved(bits))[..., 0], np.asarray(bits) * 255)


def test_palette_and_grey_with_a_transparent_colour():
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    np.testing.assert_array_equal(pixels(saved(palette, transparency=0))[0], [[255, 255, 255], [0, 0, 255]])
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    np.testing.assert_array_equal(pixels(saved(grey, transparency=7))[0, :, 0], [255, 9])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, 256)
    for source in (saved(Image.fromarray(ramp), kind), ramp, Image.fromarray(ramp.astype(np.int32))):
        np.testing.assert_array_equal(pixels(source)[0, :, 0], np.arange(256))


def test_16_bit_colour_png():
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 257, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    np.testing.assert_allclose(pixels(data), [[[0, 128, 255], [255, 1, 0]]], atol=1)


def test_cmyk_jpeg_and_tiff():
    colour = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    np.testing.assert_allclose(pixels(saved(colour, "TIFF")), np.asarray(colour.convert("RGB")), atol=0)
    np.testing.assert_allclose(pixels(saved(colour, "JPEG", quality=95)), np.asarray(colour.convert("RGB")), atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.fromarray(RGB)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it -> PIL's transposition
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(saved(stored, "PNG", exif=exif)), RGB)
    np.testing.assert_array_equal(pixels(io.BytesIO(saved(stored, "TIFF", exif=exif))), RGB)


def test_broken_exif_is_no_reason_to_refuse():
    image = Image.fromarray(RGB)
    np.testing.assert_array_equal(pixels(saved(image, "PNG", exif=b"Exif\0\0garbage")), RGB)


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1)])
def test_one_pixel_wide(size):
    image = Image.new("RGB", size, (1, 2, 3))
    assert load_image(saved(image)).size == size


def test_first_frame_of_an_animation():
    frames = [Image.new("L", (5, 4), value) for value in (10, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == 10).all()


def test_very_large_image(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (12000, 9000), 1).save(path)
    image = load_image(path)
    assert image.size == (12000, 9000)
    assert image.getpixel((11999, 8999)) == (255, 255, 255)


def test_beyond_the_decompression_limit(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (300, 200)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(GroundingError, match=r"bomb\.png.*limit of 40,000.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # PIL only warns here
    assert load_image(path).size == (300, 200)


def test_a_library_that_accepts_truncated_files_changes_nothing_here(tmp_path, monkeypatch):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(GroundingError, match="truncated or corrupt"):
        load_image(tmp_path / "half.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_truncated_files_name_the_file(tmp_path, kind, keep):
    path = tmp_path / f"half.{kind.lower()}"
    data = saved(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(GroundingError, match=rf"half\.{kind.lower()}.*(truncated|corrupt|not an image)"):
        load_image(path)


def test_corrupt_and_foreign_files(tmp_path):
    data = bytearray(saved(Image.fromarray(RGB)))
    data[60:90] = b"\xff" * 30
    with pytest.raises(GroundingError, match="truncated or corrupt"):
        load_image(bytes(data))
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(GroundingError, match=r"notes\.txt' is not an image that PIL can read; convert it"):
        load_image(path)
    with pytest.raises(GroundingError, match="the 0 bytes given is not an image"):
        load_image(b"")


def test_missing_files_directories_and_addresses(tmp_path):
    with pytest.raises(GroundingError, match=r"none\.png' does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(GroundingError, match="is a directory"):
        load_image(tmp_path)
    with pytest.raises(GroundingError, match="download the image"):
        load_image("https://example.org/cat.png")
    with pytest.raises(GroundingError, match="cannot read an image from NoneType"):
        load_image(None)


def test_arrays_of_all_kinds():
    unit = RGB.astype(np.float32) / 255
    for array in (RGB, unit, unit.astype(np.float64), RGB.astype(np.int64), RGB[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(pixels(array), RGB)
    grey = RGB[..., 0]
    for array in (grey, grey[..., None], np.stack([grey, np.full_like(grey, 255)], -1)):
        np.testing.assert_array_equal(pixels(array), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(pixels(grey > 99)[..., 0], (grey > 99) * 255)
    clear = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], -1)
    assert (pixels(clear) == 255).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 31), np.uint8), "move the channels to the last axis"),
        (np.zeros((2, 3, 4, 5)), r"got \[2, 3, 4, 5\]"),
        (np.zeros((0, 5, 3), np.uint8), "is empty"),
        (np.full((2, 2), 1.5), "0..1, got 1.5 to 1.5"),
        (np.full((2, 2), np.nan), "got nan to nan"),
        (np.full((2, 2), 300), "0..255, got 300 to 300"),
        (np.full((2, 2), -1), "got -1 to -1"),
        (np.zeros((2, 2), complex), "got dtype complex128"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(GroundingError, match=message):
        load_image(array)


def test_float_and_32_bit_images():
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 256)
    np.testing.assert_array_equal(pixels(Image.fromarray(unit))[0, :, 0], np.arange(256))
    with pytest.raises(GroundingError, match=r"mode I.*scale them"):
        load_image(Image.fromarray(np.array([[70000]], np.int32)))


def test_the_source_is_not_changed():
    image = Image.fromarray(RGB).convert("RGBA")
    before = image.tobytes()
    load_image(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


def test_the_scene_that_comes_with_the_package():
    from embedded.scenes.scenes import make_scene

    assert load_image("embedded").tobytes() == make_scene("val", 2, seed=0).image.tobytes()
