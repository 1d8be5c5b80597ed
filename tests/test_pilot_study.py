"""The pilot study: matching phrases to categories, scoring them, the random-point masks, and what captions name."""

from __future__ import annotations

import re
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny_coco
import tiny_sam
from tiny_coco import MASKS, grounding, vectors_nlp

from analysis.paper import paper_methods, paper_table
from analysis.pilot_study.figures import plot_pilot_study, plot_scores_by_size
from analysis.pilot_study.models import (
    accuracy_differences,
    compare,
    headline,
    model_names,
    stack,
    studied_models,
    study_table,
)
from analysis.pilot_study.named_objects import annotated_pairs, caption_objects, named_pairs
from analysis.pilot_study.named_objects import reading as caption_reading
from analysis.pilot_study.table import (
    Predictions,
    chance_accuracy,
    collect_predictions,
    expected_random_accuracy,
    pilot_table,
    point_accuracy,
    random_accuracy,
    reading,
)
from analysis.scoring.coco import load_instances
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import mask_ap_ar
from analysis.scoring.phrases import Phrases
from analysis.scoring.random_point import random_points, random_results, segment_random_points
from analysis.settings import Settings, describe_run
from analysis.tables import Provenance, Table
from core.errors import GroundingError
from core.masks import choose
from core.phrases import Phrase, load_nlp
from core.rle import decode_rle


@pytest.fixture(scope="module")
def nlp():
    return vectors_nlp()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco"), images=True))


def phrase(text: str, root: str) -> Phrase:
    return Phrase(text, (0, len(text)), root, (0, len(root)), (0,))


def records():
    """Image 3: a star hit, a kitten that misses, a rock that is nothing; image 7: a cat hit; image 20: a star."""
    return [
        ("3", grounding((80, 120), [("star", (30.5, 40.5), [MASKS[1][3]]), ("kitten", (5.5, 5.5), [MASKS[2][3]]),
                                    ("rock", (1.5, 1.5), [MASKS[2][3]])])),
        ("7", grounding((110, 60), [("cat", (50.5, 10.5), [MASKS[4][3]])])),
        ("20", grounding((50, 90), [("star", (1.5, 1.5), [tiny_coco.rectangle((50, 90), 0, 0, 5, 5)])])),
    ]  # fmt: skip


# ---- matching


def test_the_best_category_wins_and_only_above_the_threshold(nlp):
    matcher = CategoryMatcher(nlp)
    assert matcher.best(phrase("the sun", "sun"), {1: "star", 5: "cat"}) == (1, pytest.approx(0.8))
    assert matcher.best(phrase("the sun", "sun"), {5: "cat"}) == (5, pytest.approx(0.6))
    assert matcher.best(phrase("a rock", "rock"), {1: "star", 5: "cat"})[0] is None
    assert matcher.best(phrase("the sun", "sun"), {})[0] is None


def test_the_threshold_itself_is_a_match(nlp):
    score = CategoryMatcher(nlp).similarity("sun", "star")
    assert CategoryMatcher(nlp, threshold=score).best(phrase("sun", "sun"), {1: "star"})[0] == 1
    assert CategoryMatcher(nlp, threshold=score + 1e-6).best(phrase("sun", "sun"), {1: "star"})[0] is None


def test_head_and_phrase_differ_as_their_words_do(nlp):
    both = phrase("star cat", "cat")
    assert CategoryMatcher(nlp, by="head").best(both, {1: "star", 5: "cat"}) == (5, pytest.approx(1.0))
    assert CategoryMatcher(nlp, by="phrase").best(both, {5: "cat"}) == (5, pytest.approx(np.sqrt(0.5)))


def test_words_without_vectors_match_nothing_and_case_does_not_matter(nlp):
    matcher = CategoryMatcher(nlp, threshold=0.1)
    assert matcher.best(phrase("a zyx", "zyx"), {1: "star"}) == (None, 0.0)
    assert matcher.best(phrase("The Sun", "Sun"), {1: "STAR"})[0] == 1


def test_wrong_options_are_refused(nlp):
    with pytest.raises(GroundingError, match="'noun' is not known; choose one of head, phrase"):
        CategoryMatcher(nlp, by="noun")
    with pytest.raises(GroundingError, match="threshold is 50"):
        CategoryMatcher(nlp, threshold=50.0)


def test_a_pipeline_without_vectors_is_refused():
    import spacy

    with pytest.raises(GroundingError, match="word vectors"):
        CategoryMatcher(spacy.blank("en")).best(phrase("a star", "star"), {1: "star"})


def test_the_embedded_pipeline_tells_the_scenes_objects_apart():
    from embedded.scenes.glyphs import CATEGORIES

    matcher = CategoryMatcher(load_nlp("embedded"))
    known = dict(enumerate(CATEGORIES))
    for number, name in known.items():
        assert matcher.best(phrase(f"the {name}", name), known)[0] == number
    for word in ("image", "side", "corner", "background", "scene", "center"):
        assert matcher.best(phrase(f"the {word}", word), known)[0] is None


# ---- collecting and scoring


def test_phrases_are_matched_within_their_image_or_dropped(dataset, nlp):
    found = collect_predictions(records(), dataset, CategoryMatcher(nlp))
    assert found.phrases["category"].tolist() == ["star", "cat", "", "cat", ""]
    assert found.matched["category_id"].tolist() == [1, 5, 5]
    assert [(r["image_id"], r["category_id"]) for r in found.results] == [(3, 1), (3, 5), (7, 5)]
    assert found.answers == {3: "a star a kitten a rock", 7: "a cat", 20: "a star"}


def test_point_accuracy_is_the_share_of_matched_points_on_their_category(dataset, nlp):
    found = collect_predictions(records(), dataset, CategoryMatcher(nlp))
    assert point_accuracy(found, dataset).value == pytest.approx(2 / 3)  # the crowd of cats counts


def test_three_masks_per_phrase_are_three_predictions_and_one_share(dataset, nlp):
    triple = [("3", grounding((80, 120), [("star", (30.5, 40.5), [MASKS[1][3], MASKS[2][3], MASKS[3][3]])]))]
    found = collect_predictions(triple, dataset, CategoryMatcher(nlp))
    assert len(found.results) == 3
    assert [result["score"] for result in found.results] == pytest.approx([0.9, 0.8, 0.7])
    assert point_accuracy(found, dataset).value == 1.0


def test_answers_without_nouns_leave_nothing(dataset, nlp):
    found = collect_predictions([("3", grounding((80, 120), []))], dataset, CategoryMatcher(nlp))
    assert len(found.phrases) == 0 and found.results == []
    assert np.isnan(point_accuracy(found, dataset).value)


def test_records_of_another_dataset_are_refused(dataset, nlp):
    with pytest.raises(GroundingError, match=r"no image with id '99'.*another dataset"):
        collect_predictions([("99", grounding((80, 120), []))], dataset, CategoryMatcher(nlp))


def test_random_accuracy_nears_its_expectation(dataset):
    expected = expected_random_accuracy(dataset)
    assert random_accuracy(dataset, n_draws=300).value == pytest.approx(expected, abs=0.04)


def test_chance_weighs_categories_as_the_phrases_do(dataset, nlp):
    found = collect_predictions(records(), dataset, CategoryMatcher(nlp))
    star, cat, crowd_cats = 2650 / 9600, 1000 / 9600, 3100 / 6600
    assert chance_accuracy(found, dataset).value == pytest.approx((star + cat + crowd_cats) / 3)


# ---- the table


def test_a_perfect_model_gets_full_marks_and_its_own_row(dataset, nlp):
    perfect = []
    for image_id, size in tiny_coco.SIZES.items():
        said = []
        for owner, category, crowd, mask, _ in MASKS.values():
            if owner == image_id and not crowd and category != 9:  # "potted plant" is two words, see below
                rows, columns = np.nonzero(mask)
                said.append((tiny_coco.CATEGORIES[category], (columns[0] + 0.5, rows[0] + 0.5), [mask]))
        perfect.append((str(image_id), grounding(size, said)))
    plain = replace(
        dataset,
        annotations={k: tuple(a for a in v if a["category_id"] != 9) for k, v in dataset.annotations.items()},
    )
    table = pilot_table(collect_predictions(perfect, plain, CategoryMatcher(nlp)), [], plain, n_draws=20).set_index(
        "method"
    )
    ours = table.loc["attend-and-segment"]
    assert ours["PAcc"] == 100.0
    assert ours["AP"] == ours["AR"] == pytest.approx(100.0)
    assert ours["n_images"] == 5 and ours["n_answers"] == 5 and ours["n_phrases"] == 5
    assert table.loc["Random Point", "AP"] == 0.0
    assert 0 < table.loc["Random Point", "PAcc"] < 60
    assert "100.0 %" in reading(table.reset_index())


def test_the_papers_rows_never_mix_with_ours(dataset, nlp, tmp_path):
    found = collect_predictions(records(), dataset, CategoryMatcher(nlp))
    provenance = Provenance("tiny/model", "tiny scenes", len(dataset), {"prompt": "Describe.", "seed": 0})
    paper = paper_table(1).assign(method=paper_methods(1))
    table = Table(pilot_table(found, [], dataset, n_draws=5), "Pilot study", provenance, paper)
    table.save(tmp_path, "table1")
    frame = pd.read_csv(tmp_path / "table1.csv")
    ours = frame[frame["source"] == "measured here"]
    assert len(ours) == 3 and len(frame) == 10
    assert set(ours["model"]) == {"tiny/model"} and set(ours["data"]) == {"tiny scenes"}
    assert set(ours["settings"]) == {"prompt=Describe.; seed=0"}
    published = frame[frame["source"] != "measured here"]
    assert published["source"].str.contains("arXiv 2410.08209v1").all()
    assert set(published["data"]) == {"COCO val2017, instance segmentation"}
    assert published["PAcc"].tolist() == [10.53, 34.01, 37.16, 34.55, 38.92, 40.22, 44.49]
    page = (tmp_path / "table1.html").read_text()
    assert page.index("attend-and-segment") < page.index('class="group paper"') < page.index("Cambrian-1")
    assert "other models, other data" in page and "tiny/model" in page


def test_nothing_matched_is_said_in_words(dataset, nlp):
    found = collect_predictions(
        [("3", grounding((80, 120), [("rock", (1.5, 1.5), [MASKS[1][3]])]))], dataset, CategoryMatcher(nlp)
    )
    assert reading(pilot_table(found, [], dataset, n_draws=2)).startswith("None of the 1 phrases matched")


# ---- several models


def settings(tmp_path):
    return Settings(output_dir=str(tmp_path), n_images=5)


def test_a_study_of_one_model_keeps_its_rows(dataset, nlp, tmp_path):
    (only,) = studied_models(settings(tmp_path), {})
    assert only.settings.model == "embedded" and only.folder == ""
    found = collect_predictions(records(), dataset, CategoryMatcher(nlp))
    table = study_table({only.label: found}, [], dataset, models=[only], n_draws=3)
    pd.testing.assert_frame_equal(table, pilot_table(found, [], dataset, n_draws=3))


def test_every_model_has_a_folder_name_of_its_own(tmp_path):
    study = studied_models(settings(tmp_path), {"LLaVA, CLIP": "embedded", "DiffLMM, SD + CLIP": "somewhere/else"})
    assert [run.folder for run in study] == ["llava_clip", "difflmm_sd_clip"]
    assert [run.settings.model for run in study] == ["embedded", "somewhere/else"]
    provenance = model_names(study).provenance(5)
    assert provenance.model == "embedded; somewhere/else"
    assert headline(study, provenance) == "2 models on embedded scenes (val, seed 0), 5 images"
    assert headline(study[:1], provenance) == provenance.headline()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"A": ""}, "give `label: model` pairs of two texts"),
        ({"A": 3}, "give `label: model` pairs of two texts"),
        ({"SD + CLIP": "a", "SD, CLIP": "b"}, "'SD, CLIP' would keep its files in 'sd_clip', like another one"),
        ({"+": "a"}, "labels must differ in letters or digits"),
        ({"Random Point": "a"}, "is the baseline's; choose another"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(tmp_path, models, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        studied_models(settings(tmp_path), models)


def two_models(dataset, nlp, tmp_path):
    """The records above, and a model whose only phrase, of image 3, hits."""
    study = studied_models(settings(tmp_path), {"first": "one/model", "second": "other/model"})
    better = [("3", grounding((80, 120), [("star", (30.5, 40.5), [MASKS[1][3]])]))]
    said = {"first": records(), "second": better}
    return study, {label: collect_predictions(each, dataset, CategoryMatcher(nlp)) for label, each in said.items()}


def test_a_study_of_two_models_has_one_baseline_and_a_row_for_each(dataset, nlp, tmp_path):
    study, predictions = two_models(dataset, nlp, tmp_path)
    table = study_table(predictions, [], dataset, models=study, n_draws=5)
    assert table["method"].tolist() == ["Random Point", "first", "second"]
    assert table["model"].tolist() == ["", "one/model", "other/model"]
    assert table["PAcc"].tolist()[1:] == [pytest.approx(200 / 3), 100.0]
    assert table["chance"].tolist()[1:] == [
        pytest.approx(100 * chance_accuracy(found, dataset).value) for found in predictions.values()
    ]
    assert table["n_phrases"].tolist()[1:] == [5, 1]
    alone = pilot_table(predictions["first"], [], dataset, n_draws=5).set_index("method")
    for column in ("PAcc_low", "AP", "AR_M", "matched_share"):
        assert table[column][1] == pytest.approx(alone.loc["attend-and-segment", column])
    told = reading(table).splitlines()
    assert [line.split(":")[0] for line in told] == ["first", "second"] and "in 66.7 %" in told[0]


def test_rows_keep_their_models_in_the_csv_and_stay_apart_from_the_papers(dataset, nlp, tmp_path):
    study, predictions = two_models(dataset, nlp, tmp_path)
    scores = study_table(predictions, [], dataset, models=study, n_draws=5)
    paper = paper_table(1).assign(method=paper_methods(1))
    Table(scores, "Pilot study", model_names(study).provenance(5), paper).save(tmp_path, "table1")
    frame = pd.read_csv(tmp_path / "table1.csv", keep_default_na=False)
    ours = frame[frame["source"] == "measured here"]
    assert ours["model"].tolist() == ["", "one/model", "other/model"] and len(frame) == 10
    assert "one/model; other/model" in (tmp_path / "table1.html").read_text()
    figure = plot_pilot_study(scores, paper)
    colours = [line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert colours[0] != colours[1] == colours[2]
    assert len({bars[0].get_facecolor() for bars in plot_scores_by_size(scores).containers}) == 3
    plt.close("all")


def test_differences_are_paired_over_images(dataset, nlp, tmp_path):
    _, predictions = two_models(dataset, nlp, tmp_path)
    table = accuracy_differences(predictions, dataset)
    assert table["method"].tolist() == ["second"]
    assert table["PAcc"].item() == pytest.approx(100 / 3) and table["low"].item() <= 100 / 3 <= table["high"].item()
    same = accuracy_differences({"first": predictions["first"], "again": predictions["first"]}, dataset)
    assert same[["PAcc", "low", "high"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]
    assert "again: not told apart, 0.0 [0.0, 0.0] percentage points" in compare(same, "first")
    told = compare(pd.DataFrame({"method": ["b", "c"], "PAcc": [5.0, -5.0], "low": [1, -9.0], "high": [9.0, -1]}), "a")
    assert "b: higher, 5.0" in told and "c: lower, -5.0" in told


def test_stacked_frames_say_whose_rows_they_are():
    frame = pd.DataFrame({"value": [1.0, 2.0]})
    assert stack({"only": frame}) is frame
    assert stack({"a": frame, "b": frame})["method"].tolist() == ["a", "a", "b", "b"]


# ---- masks of the random points


@pytest.fixture(scope="module")
def random_run(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("random")
    options = {"segmenter": tiny_sam.segmenter(), "directory": directory, "progress": False}
    return directory, options, random_results(segment_random_points(dataset, **options), dataset)


def test_random_masks_belong_to_their_images_and_are_the_segmenters(dataset, random_run):
    _, _, results = random_run
    points = random_points(dataset)
    assert [(r["image_id"], r["category_id"]) for r in results] == list(
        zip(points["image_id"], points["category_id"], strict=True)
    )
    assert all(tuple(r["segmentation"]["size"]) == tiny_coco.SIZES[r["image_id"]] for r in results)
    import torch

    from core.images import load_image

    segmenter = tiny_sam.segmenter()
    segmenter.set_image(load_image(dataset.image(7).path))
    rows = points[points["image_id"] == 7]
    direct = choose(segmenter.predict(torch.tensor(rows[["x", "y"]].to_numpy(), dtype=torch.float32)), "last")
    mine = [r for r in results if r["image_id"] == 7]
    for result, mask, score in zip(mine, direct.masks, direct.scores, strict=True):
        assert torch.equal(decode_rle(result["segmentation"]), mask[0])
        assert result["score"] == pytest.approx(float(score[0]))
    assert mask_ap_ar(results, dataset)["AP"] >= 0


def test_a_killed_random_run_goes_on_where_it_stopped(dataset, random_run):
    directory, options, results = random_run
    files = sorted((directory / "records").iterdir())
    assert len(files) == len(dataset)
    files[-1].unlink()
    before = {file: file.stat().st_mtime_ns for file in files[:-1]}
    assert random_results(segment_random_points(dataset, **options), dataset) == results
    assert sorted((directory / "records").iterdir()) == files
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_other_settings_do_not_continue_a_random_run(dataset, random_run):
    _, options, _ = random_run
    with pytest.raises(GroundingError, match="other settings: seed 0 then, 1 now"):
        segment_random_points(dataset, seed=1, **options)


def test_all_masks_triple_the_random_predictions(dataset, tmp_path):
    options = {"segmenter": tiny_sam.segmenter(), "directory": tmp_path, "progress": False}
    store = segment_random_points(dataset.head(1), mask_choice="all", **options)
    assert len(random_results(store, dataset)) == 3 * 2
    assert store.config["mask_choice"] == "all"


def test_a_wrong_mask_choice_is_no_images_error(dataset, tmp_path):
    options = {"segmenter": tiny_sam.segmenter(), "directory": tmp_path, "progress": False}
    with pytest.raises(GroundingError, match="mask choice 'first' is not known"):
        segment_random_points(dataset, mask_choice="first", **options)
    assert not list((tmp_path / "records").iterdir())


def test_an_image_of_another_size_than_its_annotations_is_an_error_record(dataset, random_run, tmp_path):
    _, options, _ = random_run
    images = (replace(dataset.images[0], path=dataset.images[1].path), *dataset.images[1:])
    store = segment_random_points(replace(dataset, images=images), **{**options, "directory": tmp_path})
    assert list(store.errors()) == ["3"]
    assert "(110, 60), and the dataset's annotations are of (80, 120)" in store.errors()["3"]


def test_an_unreadable_image_is_reported_and_the_rest_is_scored(dataset, random_run, tmp_path):
    _, options, results = random_run
    broken = tmp_path / "broken.png"
    content = dataset.images[1].path.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    images = tuple(replace(image, path=broken) if number == 1 else image for number, image in enumerate(dataset.images))
    options = {**options, "directory": tmp_path / "run"}
    store = segment_random_points(replace(dataset, images=images), **options)
    bad = dataset.images[1].id
    assert random_results(store, dataset) == [result for result in results if result["image_id"] != bad]
    told = describe_run(store, [record_id for record_id, _ in dataset.items()], "masks of random points")
    assert told.startswith("4 of 5 images have masks of random points; 1 could not be used") and "broken.png" in told
    assert segment_random_points(dataset, **options).errors().keys() == {str(bad)}
    again = segment_random_points(dataset, retry_errors=True, **options)
    assert random_results(again, dataset) == results and again.errors() == {}


# ---- what the answers name


def test_pairs_are_a_colour_right_before_a_category():
    text = (
        "The image shows a Red star, two blue  cats and a green potted plant. The star is red; the cat is on a red box."
    )
    pairs = named_pairs(text, {"red", "blue", "green"}, ["star", "cat", "plant", "potted plant"])
    assert pairs == {("red", "star"), ("blue", "cat"), ("green", "potted plant")}
    assert named_pairs("a redstar and a red starfish", {"red"}, ["star"]) == set()


def test_annotated_pairs_come_from_the_attributes(dataset):
    assert annotated_pairs(dataset, 3) == {("red", "star"), ("black", "cat"), ("blue", "star")}
    assert annotated_pairs(dataset, 20) == set()


def said_only(answers):
    return Predictions(Phrases(pd.DataFrame(), np.zeros((0, 1, 2))), [], answers)


def test_precision_and_recall_of_named_objects(dataset):
    answers = {3: "A red star and a green cat.", 7: "a black cat and a black cat, a white cat", 20: "nothing"}
    found = said_only(answers)
    table = caption_objects(found, dataset).set_index("quantity")
    precision = table.loc["precision of named (colour, category)"]
    recall = table.loc["recall of annotated (colour, category)"]
    assert (precision["correct"], precision["of"]) == (
        3,
        4,
    )  # (red, star), (black, cat), (white, cat); not (green, cat)
    assert (recall["correct"], recall["of"]) == (3, 6)
    assert precision["value"] == 75.0 and recall["value"] == 50.0
    assert "3 of 4 (75.0 %)" in caption_reading(table.reset_index())


def test_datasets_without_colours_say_so(dataset):
    plain = {k: tuple({**a, "attributes": {}} for a in v) for k, v in dataset.annotations.items()}
    table = caption_objects(said_only({3: "a red star"}), replace(dataset, annotations=plain))
    assert table.empty
    assert "does not know" in caption_reading(table)
    assert "quantity" in Table(table, "Objects", Provenance("m", "d", 5)).to_html()  # a table without rows is shown


def test_the_papers_tables_are_whole():
    rows = {1: 7, 2: 8, 3: 5, 4: 3, 5: 7, 6: 7, 7: 5}
    assert {number: len(paper_table(number)) for number in rows} == rows
    assert paper_methods(1)[3] == "LLaVA-1.5, DINOv2"
    with pytest.raises(GroundingError, match="no table 8"):
        paper_table(8)
    with pytest.raises(GroundingError, match="rows of the paper's table 7 are not models"):
        paper_methods(7)
