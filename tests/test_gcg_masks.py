"""Run-length codes as they come in, and IoU without decoding, against decoded masks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as rle
from tiny_coco import compressed, rectangle, uncompressed

from analysis.gcg.masks import checked_rle, empty_masks, iou_matrix, run_lengths
from core.errors import GroundingError

PICTURES = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
STAR = rectangle((80, 120), 10, 20, 60, 70)


@given(PICTURES)
@settings(max_examples=60, deadline=None)
def test_run_lengths_are_those_of_the_pixels(mask):
    assert run_lengths(compressed(mask)["counts"]).tolist() == uncompressed(mask)["counts"]


def test_long_runs_are_read():
    mask = rectangle((3000, 4000), 1500, 10, 3900, 2990)
    assert run_lengths(compressed(mask)["counts"]).tolist() == uncompressed(mask)["counts"]


@pytest.mark.parametrize("write", [compressed, uncompressed])
def test_both_ways_of_writing_are_one_mask(write):
    code = checked_rle(write(STAR), (80, 120))
    assert np.array_equal(rle.decode(code).astype(bool), STAR)
    assert np.array_equal(rle.decode(checked_rle(write(STAR), None)).astype(bool), STAR)


GOOD = compressed(STAR)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("mask", "an object with size and counts"),
        ({"size": [80, 120]}, "an object with size and counts"),
        ({"size": [80], "counts": "a"}, "its size must be [height, width]"),
        ({"size": [80, 0], "counts": "a"}, "its size must be [height, width]"),
        ({"size": [80.0, 120.0], "counts": "a"}, "its size must be [height, width]"),
        ({**GOOD, "size": [120, 80]}, "its size is [120, 80] (height, width), but the image is [80, 120]"),
        ({**GOOD, "counts": GOOD["counts"][:-4]}, "not the run lengths of 80 x 120 pixels"),
        ({**GOOD, "counts": ""}, "no compressed run lengths"),
        ({**GOOD, "counts": GOOD["counts"] + " "}, "no compressed run lengths"),
        ({**GOOD, "counts": "ü"}, "no compressed run lengths"),
        ({**GOOD, "counts": 7}, "text or a list of run lengths, not int"),
        ({**GOOD, "counts": [5, 7]}, "not the run lengths of 80 x 120 pixels"),
        ({**GOOD, "counts": [9700, -100]}, "not the run lengths of 80 x 120 pixels"),
        ({**GOOD, "counts": ["a"]}, "not the run lengths of 80 x 120 pixels"),
        ({**GOOD, "counts": []}, "not the run lengths of 80 x 120 pixels"),
    ],
)
def test_broken_codes_are_refused_with_the_reason(code, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        checked_rle(code, (80, 120))


def test_iou_is_that_of_decoded_masks():
    rng = np.random.default_rng(0)
    first, second = (rng.random((n, 31, 47)) < 0.4 for n in (5, 3))
    first[2], second[1] = second[0], False
    found = iou_matrix([compressed(mask) for mask in first], [compressed(mask) for mask in second])
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert found[i, j] == (a & b).sum() / (a | b).sum()
    assert found[2, 0] == 1.0 and (found[:, 1] == 0).all()
    covered = iou_matrix([compressed(first[0])], [compressed(second[2])], crowds=[True])
    assert covered[0, 0] == (first[0] & second[2]).sum() / first[0].sum()


def test_no_masks_and_empty_masks():
    nothing = np.zeros((80, 120), bool)
    assert iou_matrix([], [GOOD]).shape == (0, 1) and iou_matrix([GOOD], []).shape == (1, 0)
    assert iou_matrix([compressed(nothing)], [compressed(nothing)]).tolist() == [[0.0]]
    assert empty_masks([compressed(nothing), GOOD]).tolist() == [True, False]
    assert empty_masks([]).tolist() == []
