"""GranD-f's two files, GLaMM's predictions, the embedded set: what is read, what is refused and how it is told."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tiny_coco
import tiny_gcg
from pycocotools import mask as rle
from tiny_coco import compressed, grounding, polygon, rectangle, uncompressed

from analysis.gcg.grandf import load_gcg
from analysis.gcg.predictions import open_predictions, prediction_of, read_prediction, write_predictions
from core.errors import GroundingError
from core.records import RunStore
from embedded.scenes.grounded_captions import write_grounded_captions
from embedded.scenes.scenes import make_scene

STAR, CAT = rectangle((40, 60), 3, 4, 20, 30), rectangle((40, 60), 25, 5, 50, 18)


def files(folder, *, change=None):
    """Two images, the first with two phrases; `change` edits (captions, masks) before they are written."""
    images = [{"id": "sa_9", "file_name": "nine.jpg", "height": 40, "width": 60}, {"id": "sa_10"}]
    captions = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": "sa_9", "caption": "A star and a cat.", "labels": ["a star", "a cat"]},
            {"id": 2, "image_id": "sa_9", "caption": "Two things.", "labels": []},
            {"id": 3, "image_id": "sa_10", "caption": "Nothing.", "labels": []},
        ],
    }
    masks = {
        "images": images,
        "annotations": [
            {"id": 5, "image_id": "sa_9", "category_id": 1, "iscrowd": 0, "segmentation": compressed(STAR)},
            {"id": 6, "image_id": "sa_9", "category_id": 1, "iscrowd": 1, "segmentation": uncompressed(CAT)},
        ],
    }
    if change:
        change(captions, masks)
    (folder / "val_gcg_coco_caption_gt.json").write_text(json.dumps(captions))
    (folder / "val_gcg_coco_mask_gt.json").write_text(json.dumps(masks))
    return folder


# ---- GranD-f


def test_both_files_are_read_together(tmp_path):
    dataset = load_gcg(files(tmp_path), name="tiny")
    first, second = dataset.images
    assert (first.id, first.size, first.labels) == ("sa_9", (40, 60), ("a star", "a cat"))
    assert first.captions == ("A star and a cat.", "Two things.") and first.crowds == (False, True)
    assert [rle.decode(code).astype(bool).tolist() for code in first.masks] == [STAR.tolist(), CAT.tolist()]
    assert (second.labels, second.masks, second.size) == ((), (), None)
    assert dataset.items() == [("sa_9", tmp_path / "images" / "nine.jpg"), ("sa_10", tmp_path / "images" / "sa_10.jpg")]
    assert dataset.ranks == (1, 0)  # "sa_10" comes before "sa_9"
    assert dataset.describe() == (
        "tiny: 2 images, 2 phrases, 2 masks; 1 of the masks are of crowds; 1 images have no phrase."
    )
    assert len(dataset.head(1)) == len(load_gcg(tmp_path, n_images=1)) == 1 and dataset.head(0) is dataset


def test_a_picture_without_a_name_is_found_by_its_id(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "sa_10.png").write_bytes(b"x")
    dataset = load_gcg(files(tmp_path), tmp_path / "pictures")
    assert dataset.image("sa_10").path == tmp_path / "pictures" / "sa_10.png"
    with pytest.raises(GroundingError, match="no image with id 'sa_1' among its 2"):
        dataset.image("sa_1")


def test_whole_numbers_as_ids_keep_their_order(tmp_path):
    def numbered(captions, masks):
        for content in (captions, masks):
            content["images"] = [{"id": 9, "height": 40, "width": 60}, {"id": 10}]
            for each in content["annotations"]:
                each["image_id"] = int(each["image_id"].removeprefix("sa_"))

    dataset = load_gcg(files(tmp_path, change=numbered))
    assert [image.id for image in dataset.images] == ["9", "10"] and dataset.ranks == (0, 1)
    assert dataset.image(9) is dataset.image("9")


def test_polygons_are_read_where_the_size_is_known(tmp_path):
    files(tmp_path, change=lambda _, masks: masks["annotations"][0].update(segmentation=polygon(STAR)))
    assert np.array_equal(rle.decode(load_gcg(tmp_path).images[0].masks[0]).astype(bool), STAR)


def test_masks_of_images_without_a_caption_are_left_out_and_told(tmp_path):
    def more(_, masks):
        masks["images"] = [*masks["images"], {"id": "sa_11"}]
        masks["annotations"].append({"id": 7, "image_id": "sa_11", "segmentation": compressed(STAR)})

    dataset = load_gcg(files(tmp_path, change=more))
    assert len(dataset) == 2 and dataset.left_out == 1
    assert "1 masks are of images without a caption and are left out." in dataset.describe()


def set_at(where, number, **values):
    """An edit of one entry: of captions (0) or masks (1)."""
    return lambda *contents: contents[where]["annotations"][number].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, m: c.pop("annotations"), "val_gcg_coco_caption_gt.json lacks the list annotations"),
        (lambda c, m: m.update(images={}), "val_gcg_coco_mask_gt.json lacks the list images"),
        (lambda c, m: c.update(images=[]), "lists no image"),
        (lambda c, m: c["images"].append("x"), "images[2] in "),
        (lambda c, m: c["images"].append({"id": "sa_9"}), "image 'sa_9' appears twice in "),
        (lambda c, m: c["images"][0].update(height=4.5), "image 'sa_9' in "),
        (set_at(0, 0, caption=3), "the caption annotation 1 of image 'sa_9' in "),
        (set_at(0, 0, caption=3), "has no text as `caption`, but '3'"),
        (set_at(0, 2, labels=None), "the caption annotation 3 of image 'sa_10' in "),
        (set_at(0, 2, labels=["a", 2]), "has no list of texts as `labels`"),
        (set_at(0, 2, image_id="sa_7"), "is of an image that the file does not list"),
        (lambda c, m: c["annotations"].append(5), "annotations[3] in "),
        (set_at(1, 1, image_id="sa_7"), "mask annotation 6 of image 'sa_7' in "),
        (set_at(1, 1, image_id="sa_7"), "is of an image that neither file lists"),
        (set_at(1, 1, id=5), "the id 5 appears twice"),
        (set_at(1, 1, segmentation=None), "the mask annotation 6 of image 'sa_9' in "),
        (set_at(1, 1, segmentation=None), "has a segmentation that cannot be used: a mask must be an object"),
        (set_at(1, 1, segmentation=compressed(STAR.T)), "its size is [60, 40] (height, width), but the image is ["),
        (set_at(1, 0, segmentation={"size": [40, 60], "counts": "0"}), "not the run lengths of 40 x 60 pixels"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_files_is_named(tmp_path, change, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        load_gcg(files(tmp_path, change=change))


def test_files_that_are_not_there_or_not_json(tmp_path):
    with pytest.raises(GroundingError, match=r"give the folder that holds val_gcg_coco_caption_gt.json"):
        load_gcg(tmp_path / "none")
    with pytest.raises(GroundingError, match=r"cannot read the annotations .*test_gcg_coco_caption_gt.json"):
        load_gcg(files(tmp_path), split="test")
    (tmp_path / "val_gcg_coco_mask_gt.json").write_text("[1")
    with pytest.raises(GroundingError, match=r"val_gcg_coco_mask_gt.json is not a JSON file"):
        load_gcg(tmp_path)


# ---- the embedded set


def test_the_embedded_set_is_read_by_the_same_reader(tmp_path):
    folder = write_grounded_captions(tmp_path, split="test", n=4, size=(96, 128), seed=3)
    dataset = load_gcg(folder, split="test")
    assert len(dataset) == 4 and dataset.uneven() == [] and dataset.left_out == 0
    for index, image in enumerate(dataset.images):
        scene = make_scene("test", index, size=(96, 128), seed=3)
        assert image.id == str(index) and image.path.is_file() and image.captions == (scene.caption,)
        assert image.size == (96, 128) and all(label in scene.caption for label in image.labels)
        for thing, label, code in zip(scene.objects, image.labels, image.masks, strict=True):
            assert label.endswith(f" {thing.colour} {thing.category}")
            assert np.array_equal(rle.decode(code).astype(bool), thing.mask)


def test_the_embedded_files_are_cocos(tmp_path):
    """The public evaluator opens both with pycocotools."""
    from pycocotools.coco import COCO

    folder = write_grounded_captions(tmp_path, n=2, size=(96, 128))
    masks, captions = (COCO(str(folder / f"val_gcg_coco_{kind}_gt.json")) for kind in ("mask", "caption"))
    assert masks.getImgIds() == captions.getImgIds() == ["0", "1"]
    assert all({"area", "iscrowd", "bbox", "category_id"} <= set(each) for each in masks.anns.values())


def test_pictures_are_not_drawn_again(tmp_path):
    write_grounded_captions(tmp_path, n=2, size=(96, 128))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    write_grounded_captions(tmp_path, n=3, size=(96, 128))
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 2


# ---- predictions


@pytest.fixture
def dataset(tmp_path):
    return load_gcg(files(tmp_path), name="tiny")


INNER = {"caption": "A star.", "phrases": ["A star"], "pred_masks": [compressed(STAR)]}


@pytest.mark.parametrize("content", [INNER, {"sa_9": INNER}, {"image_id": "sa_9", **INNER, "points": [[1, 2]]}])
@pytest.mark.parametrize("write", [compressed, uncompressed])
def test_every_way_of_writing_a_prediction_is_read(tmp_path, dataset, content, write):
    whole = json.loads(json.dumps(content))
    whole.get("sa_9", whole)["pred_masks"] = [write(STAR)]
    (tmp_path / "sa_9.json").write_text(json.dumps(whole))
    found = read_prediction(tmp_path / "sa_9.json", dataset.image("sa_9"))
    assert (found.caption, found.phrases) == ("A star.", ("A star",))
    assert np.array_equal(rle.decode(found.masks[0]).astype(bool), STAR)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "sa_9.json cannot be read as JSON"),
        ("[]", "sa_9.json holds a list, not an object"),
        ("{}", "sa_9.json lacks caption, phrases, pred_masks"),
        ({"sa_9": {"caption": "a"}}, "sa_9.json lacks phrases, pred_masks"),
        ({**INNER, "caption": None}, "sa_9.json: caption is 'None', not a text"),
        ({**INNER, "phrases": "a star"}, "sa_9.json: phrases is no list of texts, but 'a star'"),
        ({**INNER, "phrases": [3]}, "sa_9.json: phrases is no list of texts"),
        ({**INNER, "pred_masks": [[0, 1]]}, "sa_9.json: pred_masks is no list of run-length codes"),
        ({**INNER, "pred_masks": [INNER["pred_masks"][0], {"size": [40, 60], "counts": "!"}]}, "pred_masks[1] cannot"),
        ({**INNER, "pred_masks": [compressed(STAR.T)]}, "its size is [60, 40] (height, width), but the image is ["),
    ],
)  # fmt: skip
def test_malformed_predictions_name_the_file_and_the_field(tmp_path, dataset, content, message):
    (tmp_path / "sa_9.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(GroundingError, match=re.escape(message)):
        read_prediction(tmp_path / "sa_9.json", dataset.image("sa_9"))


def test_missing_predictions_are_counted_and_told(tmp_path, dataset):
    (tmp_path / "sa_9.json").write_text(json.dumps(INNER))
    found = open_predictions(tmp_path, dataset)
    assert found.missing == ("sa_10",)
    assert found.describe() == (
        f"1 of 2 images have a prediction in {tmp_path}; the other 1 count as answered with nothing (sa_10)."
    )
    assert [(image.id, prediction.phrases) for image, prediction in found] == [("sa_9", ("A star",)), ("sa_10", ())]
    (tmp_path / "empty").mkdir()
    with pytest.raises(GroundingError, match=r"none of the 2 images of tiny has a prediction in .* like sa_9.json"):
        open_predictions(tmp_path / "empty", dataset)
    with pytest.raises(GroundingError, match="no folder of predictions at"):
        open_predictions(tmp_path / "none", dataset)


def test_records_become_predictions_and_come_back(tmp_path, dataset):
    store = RunStore(tmp_path / "run", {"model": "tiny"})
    store.write("sa_9", grounding((40, 60), [("star", (5.5, 9.5), [STAR]), ("cat", (30.5, 9.5), [CAT])]))
    store.write("sa_10", grounding((40, 60), []))
    found = open_predictions(write_predictions(dataset.records(store), tmp_path / "out"), dataset)
    (_, first), (_, second) = found
    assert first.caption == "a star a cat" and first.phrases == ("a star", "a cat")
    assert [rle.decode(code).astype(bool).tolist() for code in first.masks] == [STAR.tolist(), CAT.tolist()]
    assert (second.caption, second.phrases, second.masks) == ("", (), ())  # an answer without a phrase has a file
    assert set(json.loads((tmp_path / "out" / "sa_9.json").read_text())) == {"sa_9"}


def test_three_masks_for_a_phrase_are_refused():
    several = grounding((40, 60), [("star", (5.5, 9.5), [STAR, STAR, STAR])])
    with pytest.raises(GroundingError, match="one mask for each phrase, and there are phrases with 3; ground with a"):
        prediction_of(several)


def test_the_random_set_is_read(tmp_path):
    dataset = load_gcg(tiny_gcg.write(tmp_path, n=20))
    assert len(dataset) == 20 and len(list(open_predictions(tmp_path / "predictions", dataset))) == 20
    assert tiny_coco.rle.area(list(dataset.images[0].masks)).min() > 0
