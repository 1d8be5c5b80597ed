"""The peaks of resampled maps are those of upsampling the maps whole, pixel for pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import points
from core.attention import remove_corners
from core.errors import GroundingError
from core.geometry import MODES, View, map_to_pixels
from core.peaks import certain_peaks
from core.points import prompt_points, whole_map_points

sides = st.integers(1, 9)


def view_of(h: int, w: int, box: tuple[float, float, float, float]) -> View:
    return View("image", torch.arange(h * w).view(h, w), box)


@st.composite
def boxes(draw, height: int, width: int) -> tuple[float, float, float, float]:
    """The whole image, the square that pads it, the square that crops it, or one with fractional edges."""
    kind = draw(st.sampled_from(["whole", "padded", "cropped", "fractional"]))
    if kind == "whole":
        return 0.0, 0.0, float(width), float(height)
    if kind == "fractional":
        x0, y0 = (draw(st.floats(-length, 0.4)) for length in (width, height))
        return x0, y0, draw(st.floats(0.6, 2 * width)), draw(st.floats(0.6, 2 * height))
    side = (max if kind == "padded" else min)(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return float(left), float(top), float(left + side), float(top + side)


@st.composite
def cases(draw) -> tuple[Tensor, View, tuple[int, int], list[int] | None]:
    """Maps, their view, an image's size, and groups or None: continuous values, or few that tie."""
    h, w, p = draw(sides), draw(sides), draw(st.integers(0, 5))
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    maps = torch.randn(p, h * w, generator=generator)
    kind = draw(st.sampled_from(["continuous", "whole numbers", "one cell", "flat", "far from 0", "tiny", "clipped"]))
    changes = {
        "whole numbers": lambda: maps.round(),
        "one cell": lambda: torch.nn.functional.one_hot(torch.arange(p) * 7 % (h * w), h * w).float(),
        "flat": lambda: torch.full_like(maps, 0.3),
        "far from 0": lambda: maps * 1e-4 + 1000,
        "tiny": lambda: maps * 1e-38,
        "clipped": lambda: maps.clamp(-0.5, 0.5),
    }
    maps = changes.get(kind, lambda: maps)()
    cuts = sorted(draw(st.lists(st.integers(1, max(p - 1, 1)), max_size=2, unique=True))) if p > 1 else []
    groups = [b - a for a, b in zip([0, *cuts], [*cuts, p], strict=True)] if p and draw(st.booleans()) else None
    return maps, view_of(h, w, draw(boxes(*size))), size, groups


@settings(max_examples=400, deadline=None)
@given(case=cases(), corners=st.booleans(), mode=st.sampled_from([*MODES, "bicubic", "bicubic"]))
def test_points_are_those_of_whole_maps(case, corners: bool, mode: str) -> None:
    maps, view, size, groups = case
    found = prompt_points(maps, view, size, remove_corners=corners, mode=mode, groups=groups)
    grids = maps.view(-1, *view.shape)
    grids = remove_corners(grids) if corners else grids
    assert torch.equal(found, whole_map_points(grids, view, size, mode=mode, groups=groups))


@pytest.mark.parametrize(("grid", "size"), [((24, 24), (333, 500)), ((54, 72), (480, 640)), ((7, 5), (120, 71))])
def test_maps_like_a_models_are_decided_without_upsampling_them(grid, size, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(12, *grid, generator=generator).exp()  # few cells stand out, as after a softmax
    view = view_of(*grid, (0.0, -20.0, float(size[1]), size[0] + 20.0))
    whole = whole_map_points(maps, view, size)
    monkeypatch.setattr(points, "whole_map_points", None)
    assert torch.equal(prompt_points(maps.flatten(1), view, size), whole)
    both = prompt_points(maps.flatten(1), view, size, groups=[5, 7])
    assert [point in whole[part].tolist() for point, part in zip(both.tolist(), (slice(5), slice(5, 12)), strict=True)]


def test_what_float32_cannot_tell_apart_is_left_undecided() -> None:
    """Two equal cells, one cell with its centre between two pixels, a flat map, one that is not finite."""
    maps = torch.zeros(4, 6, 6)
    maps[0, 1, 1] = maps[0, 4, 4] = maps[1, 2, 3] = 1.0
    maps[3, 0, 0] = float("nan")
    view, seen = view_of(6, 6, (0.0, 0.0, 60.0, 48.0)), (slice(0, 48), slice(0, 60))
    found = certain_peaks(maps, torch.arange(4), 4, view, seen)
    assert found.tolist() == [[-1, -1]] * 4
    odd = view_of(6, 6, (0.0, 0.0, 66.0, 54.0))  # 11 x 9 pixels a cell, whose centre is a pixel's
    assert certain_peaks(
        maps[1:2], torch.zeros(1, dtype=torch.int64), 1, odd, (slice(0, 54), slice(0, 66))
    ).tolist() == [[22, 38]]


def test_the_bound_holds_everywhere() -> None:
    """No pixel between four cell centres exceeds the largest control point: a law of Bezier curves, here of ours."""
    from core.peaks import _Axis, _Search

    cells = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    view, size = view_of(5, 6, (0.0, 0.0, 180.0, 100.0)), (100, 180)
    rows, columns = _Axis.of(5, 0.0, 100.0, slice(0, 100)), _Axis.of(6, 0.0, 180.0, slice(0, 180))
    padded = torch.nn.functional.pad(cells[:, None], (2, 2, 2, 2), mode="replicate")[:, 0]
    bounds = _Search(padded, torch.arange(8), rows, columns, torch.zeros(8))._bounds(padded)
    values = map_to_pixels(cells, view, size=size)
    for block in range(6):
        for across in range(7):
            inside = values[:, rows.pixels[block]][:, :, columns.pixels[across]]
            assert (inside.amax((1, 2)) <= bounds[:, block, across]).all()


def test_maps_that_are_not_finite_are_refused_as_before() -> None:
    maps = torch.zeros(2, 12)
    maps[1, 3] = float("inf")
    with pytest.raises(GroundingError, match="not finite"):
        prompt_points(maps, view_of(3, 4, (0.0, 0.0, 40.0, 30.0)), (30, 40))
