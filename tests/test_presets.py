"""Ways of grounding side by side: what is studied, how it is scored, and what the tables leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco
import tiny_gcg
from tiny_coco import MASKS, grounding, matcher

from analysis.gcg.grandf import load_gcg
from analysis.gcg.predictions import prediction_of
from analysis.presets import (
    METRICS,
    STUDIED,
    Part,
    PresetSettings,
    differences_of,
    preset_table,
    reading,
    score_presets,
    values_of,
)
from analysis.scoring.coco import load_instances
from core import PRESETS
from core.errors import GroundingError
from core.records import RunStore


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    settings = PresetSettings(output_dir=str(folder / "out"), n_images=3)
    captions = load_gcg(tiny_gcg.write(folder / "gcg"), n_images=6)
    instances = load_instances(tiny_coco.write(folder))
    return Part("grounded captions", settings, captions), Part("instances", settings, instances)


def said_rightly(image):
    """The true phrases with their true masks."""
    said = [(label.split()[-1], (0.5, 0.5), [mask]) for label, mask in zip(image.labels, image.masks, strict=False)]
    answer = grounding(tiny_gcg.SIZE, [(noun, point, []) for noun, point, _ in said])
    codes = [mask | {"counts": mask["counts"].decode()} for mask in image.masks[: len(said)]]
    return replace(answer, masks=tuple((code,) for code in codes))


def pointed(image_id: int, x: float, y: float, masks):
    return grounding(tiny_coco.SIZES[image_id], [("star", (x, y), masks)])


@pytest.fixture(scope="module")
def stores(parts, tmp_path_factory):
    """Three ways: all right, the same again, and one that masks and points at nothing."""
    folder, found = tmp_path_factory.mktemp("stores"), {part.name: {} for part in parts}
    for name in ("paper", "again", "blind"):
        captions = found[parts[0].name][name] = RunStore(folder / f"captions {name}", {"way": name}, keep_maps=False)
        for image in parts[0].dataset.images:
            answer = said_rightly(image)
            nothing = tiny_coco.compressed(np.zeros(tiny_gcg.SIZE, dtype=bool))
            masks = answer.masks if name != "blind" else ((nothing,),) * len(answer.phrases)
            captions.write(image.id, replace(answer, masks=masks))
        points = found[parts[1].name][name] = RunStore(folder / f"points {name}", {"way": name}, keep_maps=False)
        right = name != "blind"
        points.write("3", pointed(3, *((30.5, 40.5) if right else (1.5, 1.5)), [MASKS[1][3]] if right else []))
        points.write("30", pointed(30, *((50.5, 50.5) if right else (1.5, 1.5)), [MASKS[8][3]] if right else []))
    return found


def test_presets_are_studied_and_single_changes_of_the_papers():
    assert next(iter(STUDIED)) == "paper" and STUDIED["paper"] == PRESETS["paper"]
    assert {"reference_v1", "reference_v1_demo", "reference_v2", "no_normalization", "mask_prompt"} <= set(STUDIED)
    singles = {name: options.changes() for name, options in STUDIED.items() if name.startswith("paper, but")}
    assert len(singles) == 7 and all(len(changes) == 1 for changes in singles.values())
    together = {name for changes in singles.values() for name in changes}
    assert together >= set(PRESETS["reference_v1_demo"].changes()) | set(PRESETS["reference_v2"].changes())


def test_equal_ways_differ_by_nothing_and_a_blind_one_by_all(parts, stores):
    scores = score_presets(stores, parts, encoder=tiny_gcg.Vectors(), matcher=matcher())
    table = preset_table(scores).set_index("grounding")
    assert table.loc["paper", "PAcc"] == 100.0 and table.loc["blind", "PAcc"] == 0.0
    for metric in METRICS:
        assert table.loc["paper", metric] == table.loc["again", metric] > table.loc["blind", metric], metric
        assert np.isnan(table.loc["paper", f"{metric} difference"])
        same = [table.loc["again", f"{metric} difference{end}"] for end in ("", "_low", "_high")]
        assert same == pytest.approx([0.0, 0.0, 0.0])
        apart = table.loc["blind", metric] - table.loc["paper", metric]
        assert table.loc["blind", f"{metric} difference"] == pytest.approx(apart)
    text = reading(table.reset_index())
    assert "again: nothing told apart" in text and "PAcc lower (-100.0 [-100.0, -100.0])" in text


def test_without_instances_points_are_left_out(parts, stores):
    scores = score_presets(stores, parts[:1], encoder=tiny_gcg.Vectors(), matcher=matcher())
    table = preset_table(scores)
    assert table["PAcc"].isna().all() and table["mIoU"].notna().all()
    values, differences = values_of(table), differences_of(table)
    assert [name for name in values if "_" not in name] == ["grounding", "mIoU", "recall"]
    assert list(values)[-1] == "n_phrases" and len(values) == 3
    assert list(differences["grounding"]) == ["again", "blind"] and not any("PAcc" in name for name in differences)


def test_a_phrase_with_three_masks_counts_three_times_where_asked(parts):
    answer = grounding(
        tiny_coco.SIZES[3], [("star", (30.5, 40.5), 3 * [MASKS[1][3]]), ("cat", (0.5, 0.5), 3 * [MASKS[2][3]])]
    )
    found = prediction_of(answer, every_mask=True)
    assert found.phrases == 3 * ("a star",) + 3 * ("a cat",) and len(found.masks) == 6
    with pytest.raises(GroundingError, match="one mask for each phrase"):
        prediction_of(answer)
    with pytest.raises(GroundingError, match="phrases with 0"):
        prediction_of(replace(answer, masks=((), ())), every_mask=True)


def test_embedded_captions_and_instances_are_the_same_images_answered_once(tmp_path):
    settings = PresetSettings(output_dir=str(tmp_path), n_images=1)
    captions, instances = settings.parts()
    assert captions.dataset.items() == instances.dataset.items()
    assert captions.settings.data_name() == instances.settings.data_name()


def test_given_captions_without_instances_are_one_part_and_with_them_two(tmp_path):
    folder = tiny_gcg.write(tmp_path / "gcg")
    given = {"output_dir": str(tmp_path), "data": str(folder), "seed": 4}
    (captions,) = PresetSettings(**given).parts()
    assert captions.name == "grounded captions" and len(captions.dataset) > 30
    _, points = PresetSettings(**given, instances=str(tiny_coco.write(tmp_path))).parts()
    assert len(points.dataset) == len(tiny_coco.SIZES) and points.settings.seed == 4
