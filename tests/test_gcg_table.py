"""Table 2's rows, differences, settings and figures: what they hold, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny_gcg
from tiny_coco import vectors_nlp

from analysis.figures import drawn_numbers
from analysis.gcg.figures import plot_example, plot_gcg, plot_protocols
from analysis.gcg.grandf import load_gcg
from analysis.gcg.predictions import open_predictions
from analysis.gcg.scores import METRICS, difference, score_predictions
from analysis.gcg.settings import GcgSettings
from analysis.gcg.table import compare, gcg_differences, gcg_table, name_models, optimal_table, paper_rows, reading
from analysis.settings import check_folders
from analysis.tables import Provenance, Table
from core.errors import GroundingError
from core.phrases import load_nlp

DRAWS = {"draws": 200}


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """The predictions of the random set, and another system that left some images out; no captions."""
    folder = tiny_gcg.write(tmp_path_factory.mktemp("gcg") / "set", n=30)
    dataset = load_gcg(folder, name="tiny")
    fewer = folder / "fewer"
    fewer.mkdir()
    for image in dataset.images[:18]:
        (fewer / f"{image.id}.json").write_bytes((folder / "predictions" / f"{image.id}.json").read_bytes())
    return {"ours": open_predictions(folder / "predictions", dataset), "GLaMM": open_predictions(fewer, dataset)}


@pytest.fixture(scope="module")
def scores(systems):
    return {label: score_predictions(found, tiny_gcg.Vectors(), captions=False) for label, found in systems.items()}


def test_rows_are_the_scores_in_percent_and_say_by_which_encoder(scores):
    table, both = gcg_table(scores, **DRAWS).set_index("method"), optimal_table(scores, **DRAWS).set_index("method")
    for label, own in scores.items():
        for metric in METRICS[2:5]:
            found = own.interval(metric, **DRAWS)
            cells = table.loc[label, [metric, f"{metric}_low", f"{metric}_high"]]
            assert cells.tolist() == [100 * found.value, 100 * found.low, 100 * found.high]
        assert np.isnan(table.loc[label, "METEOR"])  # not computed: none, and never 0
        assert both.loc[label, "precision"] == 100 * own.interval("precision (optimal)", **DRAWS).value
        assert both.loc[label, "recall"] == 100 * own.interval("recall (optimal)", **DRAWS).value
        assert both.loc[label, "recall, GLaMM"] == table.loc[label, "recall"]
    assert set(table["text_encoder"]) == set(both["text_encoder"]) == {"tiny vectors"}
    assert table["n_missing"].tolist() == [0, 12]


def test_differences_are_those_of_the_pairs(scores):
    frame = gcg_differences(scores, **DRAWS)
    assert frame["method"].unique().tolist() == ["GLaMM"] and frame["metric"].tolist() == list(METRICS[2:])
    for row in frame.to_dict("records"):
        found = difference(scores["ours"], scores["GLaMM"], row["metric"], **DRAWS)
        assert [row["difference"], row["low"], row["high"]] == [100 * v for v in (found.value, found.low, found.high)]
    told = compare(frame, "ours")
    assert told.startswith("Against ours on the same images") and "  GLaMM, recall: lower, -" in told
    assert gcg_differences({"ours": scores["ours"]}).empty


def test_other_encoders_are_not_compared(systems, scores):
    other = tiny_gcg.Vectors()
    other.name = "other vectors"
    mixed = {"ours": scores["ours"], "GLaMM": score_predictions(systems["GLaMM"], other, captions=False)}
    with pytest.raises(GroundingError, match="recall by other vectors and by tiny vectors cannot be compared"):
        gcg_differences(mixed)


def test_the_papers_rows_stand_apart_and_are_of_the_split(scores, tmp_path):
    table = name_models(gcg_table(scores, **DRAWS), {"ours": "tiny/model", "GLaMM": "predictions in elsewhere"})
    Table(table, "GCG", Provenance("tiny/model", "tiny", 30), paper_rows("test")).save(tmp_path, "table2")
    frame = pd.read_csv(tmp_path / "table2.csv")
    ours, paper = frame[frame["source"] == "measured here"], frame[frame["source"] != "measured here"]
    assert ours["model"].tolist() == ["tiny/model", "predictions in elsewhere"] and len(paper) == 8
    assert paper.set_index("method").loc["DiffLMM + a&s", ["METEOR", "mIoU", "recall"]].tolist() == [18.2, 62.1, 44.2]
    assert set(paper["text_encoder"]) == {"bert-base-uncased"} and paper["AP50"].isna().all()
    assert paper_rows("val").set_index("method").loc["GLaMM", "recall"] == 41.8
    with pytest.raises(GroundingError, match="has no split 'train'; choose val or test"):
        paper_rows("train")
    alone = gcg_table({"ours": scores["ours"]}, **DRAWS)
    assert name_models(alone, {"ours": "tiny/model"}) is alone


def test_the_reading_tells_numbers_and_what_is_missing(scores):
    told = reading(scores, **DRAWS).splitlines()
    recall = scores["GLaMM"].interval("recall", **DRAWS).percent()
    assert told[1].startswith(f"GLaMM: mask recall {recall} as GLaMM counts")
    assert "12 images without a prediction count as answered with nothing" in told[1]


# ---- figures


def test_figures_draw_the_tables_numbers(scores):
    table = gcg_table(scores, **DRAWS)
    figure = plot_gcg(table, paper_rows("val"))
    drawn = drawn_numbers(figure)
    assert len(figure.axes) == 4  # METEOR was not computed
    ours = drawn[(drawn["axes"] == "recall, measured here") & (drawn["artist"] == "GLaMM")]
    assert ours["x"].tolist() == [table.set_index("method").loc["GLaMM", "recall"]]
    published = drawn[drawn["axes"].str.startswith("mIoU, published") & (drawn["artist"] == "LISA")]
    assert published["x"].tolist() == [62.0]
    both = optimal_table(scores, **DRAWS)
    drawn = drawn_numbers(plot_protocols(both).figure)
    dots = drawn[drawn["artist"] == "ours"]["y"].tolist()
    assert dots == both.loc[0, ["recall, GLaMM", "recall", "precision", "F1", "mIoU"]].tolist()
    plt.close("all")


def test_an_example_shows_truth_and_every_system(systems):
    (image, first), *_ = systems["ours"]
    figure = plot_example(np.zeros((*tiny_gcg.SIZE, 3), np.uint8), image, {"ours": first, "GLaMM": first}, most=2)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["annotated", "ours", "GLaMM"]
    assert [text.get_text() for text in figure.axes[1].texts] == list(first.phrases[:2])
    plt.close("all")


# ---- settings


def test_the_embedded_set_is_drawn_and_read(tmp_path):
    settings = GcgSettings(output_dir=str(tmp_path), n_images=2, split="test", seed=1)
    dataset = settings.open_dataset()
    assert dataset.name == settings.data_name() == "embedded scenes (test, seed 1)"
    assert [image.id for image in dataset.images] == ["0", "1"]
    assert settings.open_encoder(vectors_nlp()).name.startswith("word vectors of ")


def test_given_data_are_read_and_splits_are_other_data(tmp_path, lmms):
    folder = tiny_gcg.write(tmp_path / "grandf", n=5, split="test")
    settings = GcgSettings(output_dir=str(tmp_path / "run"), data=str(folder), split="test", n_images=3)
    assert len(settings.open_dataset()) == 3 and settings.data_name() == "grandf (test)"
    loaded = {"lmm": lmms["llava"], "segmenter": None, "nlp": load_nlp()}
    other = replace(settings, split="val")
    assert settings.run_config(**loaded) != other.run_config(**loaded)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "train"}, "split is 'train'; choose one of val, test"),
        ({"text_encoder": " "}, "text_encoder is empty; give 'spacy'"),
        ({"preset": "newest"}, "no preset is called 'newest'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, wrong, message):
    with pytest.raises(GroundingError, match=message):
        GcgSettings(output_dir=str(tmp_path), n_images=2, **wrong)


def test_labels_of_other_systems():
    assert check_folders("predictions", ["ours"], {"GLaMM": "folder"}) == {"GLaMM": "folder"}
    with pytest.raises(GroundingError, match="predictions has 'GLaMM': 3; give `label: folder` pairs"):
        check_folders("predictions", [], {"GLaMM": 3})
    with pytest.raises(GroundingError, match="has the label 'ours', which is a row of our own"):
        check_folders("predictions", ["ours"], {"ours": "folder"})
