"""The procedural scenes: reproducible, disjoint splits, exact masks, true descriptions, a readable COCO file."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from core.errors import GroundingError
from embedded.scenes.dataset import write_dataset
from embedded.scenes.glyphs import CATEGORIES, silhouette
from embedded.scenes.scenes import COLOURS, make_scene

NON_SQUARE = [(96, 160), (160, 96)]


def digest(scene) -> str:
    return hashlib.sha256(np.asarray(scene.image).tobytes()).hexdigest()


@pytest.mark.parametrize("size", NON_SQUARE)
def test_same_arguments_give_the_same_scene_and_size_is_height_width(size):
    first, second = (make_scene("val", 7, size=size, seed=3) for _ in range(2))
    assert (first.image.height, first.image.width) == size
    assert digest(first) == digest(second) and first.caption == second.caption and first.questions == second.questions


def test_splits_and_seeds_share_no_picture():
    digests = [
        digest(make_scene(split, index, size=(64, 96), seed=seed))
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for index in range(15)
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("size", NON_SQUARE)
def test_masks_are_disjoint_and_their_ink_has_the_named_colour(size):
    for index in range(12):
        scene = make_scene("train", index, size=size)
        masks = np.stack([thing.mask for thing in scene.objects])
        assert masks.sum(0).max() == 1 and masks.shape[1:] == size
        for thing in scene.objects:
            pixels = np.asarray(scene.image)[thing.mask].astype(float)
            distance = {name: np.abs(pixels - np.array(colour)).sum(1).min() for name, colour in COLOURS.items()}
            assert distance[thing.colour] < 70, (index, thing.category, thing.colour, distance)


@pytest.mark.parametrize("size", NON_SQUARE)
def test_mask_pixels_are_the_painted_ones(size):
    """Inside an object's mask the texture is gone: neighbouring columns differ less than on a striped background."""
    scene = make_scene("val", 3, size=size)
    thing = max(scene.objects, key=lambda thing: thing.mask.sum())
    x, y, width, height = thing.box
    ys, xs = np.nonzero(thing.mask)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + width, y + height)
    outside = np.asarray(scene.image)[~np.any([t.mask for t in scene.objects], axis=0)].astype(float)
    inside = np.asarray(scene.image)[thing.mask].astype(float)
    assert np.linalg.norm(inside.mean(0) - outside.mean(0)) > 25


def test_silhouettes_are_solid():
    for category in CATEGORIES:
        shape = silhouette(category)
        filled, ink = np.asarray(shape.filled) > 0, np.asarray(shape.ink) > 127
        assert (filled | ~ink).mean() > 0.99, category
        outside = Image.fromarray(np.pad(filled, 1).astype(np.uint8)).copy()
        ImageDraw.floodfill(outside, (0, 0), 2)
        assert 0 not in np.asarray(outside), f"{category} has a hole"
        assert filled.mean() > 0.2, (category, filled.mean())


def test_descriptions_name_every_object_from_left_to_right():
    pair = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(CATEGORIES)})\b")
    for index in range(40):
        scene = make_scene("test", index, size=(64, 80))
        opening = scene.caption.split(". ")[0]
        assert pair.findall(opening) == [(thing.colour, thing.category) for thing in scene.objects]
        assert [thing.centre[0] for thing in scene.objects] == sorted(thing.centre[0] for thing in scene.objects)
        for larger, smaller in re.findall(
            r"The (?:\w+ )?(\w+) is [^.]*and it is larger than the (?:\w+ )?(\w+)\.", scene.caption
        ):
            scale = {thing.category: thing.scale for thing in scene.objects}
            if len(scale) == len(scene.objects):
                assert scale[larger] > scale[smaller]


def test_answers_are_true():
    for index in range(30):
        scene = make_scene("train", index, size=(64, 64))
        present = {thing.category for thing in scene.objects}
        for question, answer in scene.questions:
            asked = re.match(r"Is there an? (\w+) in the image\?", question)
            if asked:
                assert answer.startswith("Yes" if asked.group(1) in present else "No")


def test_unknown_split_or_tiny_size_is_refused():
    with pytest.raises(GroundingError, match="split in"):
        make_scene("valid", 0)
    with pytest.raises(GroundingError, match="at least 32x32"):
        make_scene("val", 0, size=(20, 64))


def test_dataset_is_coco_and_is_not_drawn_twice(tmp_path):
    path = write_dataset(tmp_path, split="val", n=5, seed=1)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    assert write_dataset(tmp_path, split="val", n=5, seed=1) == path
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "images").iterdir()}
    coco = COCO(path)
    assert len(coco.imgs) == 5 and len(before) == 5
    for index in range(5):
        scene = make_scene("val", index, seed=1)
        info = coco.imgs[index]
        assert Image.open(tmp_path / "images" / info["file_name"]).size == (info["width"], info["height"])
        for annotation, thing in zip(coco.imgToAnns[index], scene.objects, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), thing.mask)
            assert annotation["area"] == thing.mask.sum()
            assert coco.cats[annotation["category_id"]]["name"] == thing.category
            assert annotation["attributes"]["colour"] == thing.colour
    conversations = json.loads((tmp_path / "conversations.json").read_text())
    assert [turn["from"] for turn in conversations[0]["conversations"][:2]] == ["human", "gpt"]
    assert conversations[0]["conversations"][0]["value"].startswith("<image>\n")
