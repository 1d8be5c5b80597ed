import pytest
import torch

from core import points
from core.errors import GroundingError
from core.geometry import View
from core.points import peak, prompt_points, visible_pixels

SIZES = [(60, 120), (120, 60), (37, 91), (1, 50)]


def view(h: int, w: int, box: tuple[float, float, float, float]) -> View:
    return View("image", torch.arange(h * w).view(h, w), box)


def padded(size: tuple[int, int]) -> tuple[float, float, float, float]:
    side, (height, width) = float(max(size)), size
    top, left = (side - height) // 2, (side - width) // 2
    return (-left, -top, side - left, side - top)


@pytest.mark.parametrize("size", SIZES)
def test_the_peak_is_the_centre_of_the_brightest_pixel(size: tuple[int, int]) -> None:
    values = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    for value, (x, y) in zip(values, peak(values).tolist(), strict=True):
        assert (x % 1, y % 1) == (0.5, 0.5)
        assert value[int(y), int(x)] == value.max()


def test_equal_values_give_the_first_in_row_order() -> None:
    values = torch.zeros(4, 5)
    values[2, 3] = values[3, 1] = 1
    assert peak(values).tolist() == [3.5, 2.5]


@pytest.mark.parametrize("size", SIZES[:3])
def test_a_bright_cell_is_found_in_its_own_place(size: tuple[int, int]) -> None:
    grid = view(6, 8, (0.0, 0.0, float(size[1]), float(size[0])))
    found = prompt_points(torch.eye(48), grid, size)
    for cell, (x, y) in enumerate(found.tolist()):
        x0, y0, x1, y1 = grid.cell(cell // 8, cell % 8)
        assert x0 <= x <= x1
        assert y0 <= y <= y1


@pytest.mark.parametrize("size", SIZES)
def test_points_on_a_padded_square_are_those_of_upsampling_it_and_cropping(size: tuple[int, int]) -> None:
    """As in the released code: bicubic to the square, crop the image's rectangle, arg max."""
    side = max(size)
    maps = torch.randn(5, 49, generator=torch.Generator().manual_seed(2))
    square = torch.nn.functional.interpolate(maps.view(5, 1, 7, 7), (side, side), mode="bicubic", align_corners=False)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    cropped = square[:, 0, top : top + size[0], left : left + size[1]]
    best = cropped.reshape(5, -1).argmax(1)
    expected = torch.stack([best % size[1], best // size[1]], 1) + 0.5
    assert torch.equal(prompt_points(maps, view(7, 7, padded(size)), size), expected)


def test_pixels_that_a_crop_hid_from_the_model_never_win() -> None:
    size, box = (40, 100), (30.0, 0.0, 70.0, 40.0)
    for cell in range(16):
        x, y = prompt_points(torch.eye(16)[cell : cell + 1], view(4, 4, box), size)[0].tolist()
        assert 30 < x < 70
        assert 0 < y < 40
    assert visible_pixels(view(4, 4, box), size) == (slice(0, 40), slice(30, 70))


def test_maps_taken_a_few_at_a_time_give_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(7, 12, generator=torch.Generator().manual_seed(3))
    grid = view(3, 4, (0.0, 0.0, 50.0, 30.0))
    together = prompt_points(maps, grid, (30, 50))
    monkeypatch.setattr(points, "PIXELS_AT_ONCE", 2 * 30 * 50)
    assert torch.equal(prompt_points(maps, grid, (30, 50)), together)


def test_removed_corners_never_hold_the_peak() -> None:
    maps = torch.zeros(1, 16)
    maps[0, 0], maps[0, 5] = 2.0, 1.0
    grid = view(4, 4, (0.0, 0.0, 80.0, 40.0))
    x, y = prompt_points(maps, grid, (40, 80))[0].tolist()
    assert (x < 20, y < 10) == (True, True)
    x, y = prompt_points(maps, grid, (40, 80), remove_corners=True)[0].tolist()
    assert 20 <= x <= 40
    assert 10 <= y <= 20


def test_no_phrases_give_no_points() -> None:
    assert prompt_points(torch.zeros(0, 12), view(3, 4, (0.0, 0.0, 50.0, 30.0)), (30, 50)).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: peak(torch.zeros(0, 5)), "has no peak"),
        (lambda: peak(torch.tensor([[0.0, float("nan")]])), "not finite"),
        (
            lambda: visible_pixels(view(2, 2, (60.0, 0.0, 80.0, 20.0)), (20, 40)),
            "holds no pixel of an image of 20 x 40",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(GroundingError, match=message):
        call()
