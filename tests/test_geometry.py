"""Grid cells, boxes and pixels: laws of `map_to_pixels`, and parity with torch's interpolation."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from core.errors import GroundingError
from core.geometry import View, map_to_pixels


def view(h: int, w: int, box: tuple[float, float, float, float]) -> View:
    return View("image", rearrange(torch.arange(h * w), "(h w) -> h w", h=h), box)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(60, 91), (91, 60), (3, 5)])
def test_whole_image_equals_interpolate(mode, size):
    values = torch.randn(3, 4, 7)
    options = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": mode, "align_corners": False}
    expected = F.interpolate(values[None], size=size, **options)[0]
    found = map_to_pixels(values, view(4, 7, (0.0, 0.0, float(size[1]), float(size[0]))), size=size, mode=mode)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (33, 100)])
def test_padded_square_equals_upsample_then_crop(size):
    height, width = size
    side, top, left = max(size), (max(size) - height) // 2, (max(size) - width) // 2
    values = torch.randn(2, 6, 6)
    square = F.interpolate(values[None], size=(side, side), mode="bicubic", align_corners=False)[0]
    box = (float(-left), float(-top), float(side - left), float(side - top))
    found = map_to_pixels(values, view(6, 6, box), size=size)
    torch.testing.assert_close(found, square[:, top : top + height, left : left + width], atol=1e-5, rtol=1e-5)


def test_cropped_box_equals_interpolate_inside_and_its_border_outside():
    values = torch.randn(5, 5)
    found = map_to_pixels(values, view(5, 5, (20.0, 0.0, 80.0, 60.0)), size=(60, 100))
    inside = F.interpolate(values[None, None], size=(60, 60), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(found[:, 20:80], inside, atol=1e-5, rtol=1e-5)
    border = map_to_pixels(values[:, :1], view(5, 1, (0.0, 0.0, 1.0, 60.0)), size=(60, 1))
    torch.testing.assert_close(found[:, :10], border.expand(-1, 10), atol=1e-5, rtol=1e-5)


def test_fractional_box_equals_interpolation_on_a_finer_raster():
    values = torch.rand(4, 6)
    fine = map_to_pixels(values, view(4, 6, (5.0, -10.0, 95.0, 50.0)), size=(40, 100))  # all edges times 4
    coarse = map_to_pixels(values, view(4, 6, (1.25, -2.5, 23.75, 12.5)), size=(10, 25))
    centres = fine[..., 1:, 1:][..., ::4, ::4] + fine[..., 1:, 2:][..., ::4, ::4]
    centres = centres + fine[..., 2:, 1:][..., ::4, ::4] + fine[..., 2:, 2:][..., ::4, ::4]
    torch.testing.assert_close(coarse, centres / 4, atol=5e-3, rtol=0)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
def test_constants_stay_constant_and_batches_are_kept(mode):
    found = map_to_pixels(torch.full((2, 3, 4, 5), 0.7), view(4, 5, (-3.5, 2.25, 60.0, 33.0)), size=(41, 57), mode=mode)
    assert found.shape == (2, 3, 41, 57)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full_like(found, 0.7))


@pytest.mark.parametrize("size", [(50, 91), (91, 50), (40, 61)])
@pytest.mark.parametrize("cell", [(0, 0), (2, 4), (3, 1), (3, 5)])
def test_the_peak_of_one_cell_lies_in_the_cell(size, cell):
    grid = view(4, 6, (-2.5, -1.0, size[1] + 1.0, size[0] + 3.25))
    values = torch.zeros(4, 6)
    values[cell] = 1
    y, x = divmod(int(map_to_pixels(values, grid, size=size).argmax()), size[1])
    x0, y0, x1, y1 = grid.cell(*cell)
    assert x0 <= x + 0.5 <= x1
    assert y0 <= y + 0.5 <= y1


def test_cells_tile_the_box():
    grid = view(3, 5, (-4.0, 2.0, 46.0, 32.0))
    assert grid.shape == (3, 5)
    assert grid.cell(0, 0) == (-4.0, 2.0, 6.0, 12.0)
    assert grid.cell(2, 4) == (36.0, 22.0, 46.0, 32.0)


def test_errors_say_what_to_do():
    grid = view(3, 5, (0.0, 0.0, 5.0, 3.0))
    with pytest.raises(GroundingError, match="unknown mode 'cubic'; use one of bicubic"):
        map_to_pixels(torch.zeros(3, 5), grid, size=(6, 10), mode="cubic")
    with pytest.raises(GroundingError, match=r"grid of \(3, 5\)"):
        map_to_pixels(torch.zeros(5, 3), grid, size=(6, 10))
    with pytest.raises(GroundingError, match=r"must be positive, got \(0, 10\)"):
        map_to_pixels(torch.zeros(3, 5), grid, size=(0, 10))
    with pytest.raises(GroundingError, match="empty box"):
        view(3, 5, (4.0, 0.0, 4.0, 3.0))
    with pytest.raises(GroundingError, match=r"shape \[h, w\]"):
        View("grid", torch.zeros(0, 4, dtype=torch.int64), (0.0, 0.0, 1.0, 1.0))
