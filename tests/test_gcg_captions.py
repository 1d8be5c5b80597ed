"""METEOR and CIDEr: the stock scorers' numbers, and every way in which Java may not be there or fail."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import tiny_gcg

from analysis.gcg import java
from analysis.gcg.captions import caption_scores, cider_scores, meteor_scores
from analysis.gcg.grandf import load_gcg
from analysis.gcg.predictions import open_predictions
from analysis.gcg.scores import score_predictions
from core.errors import GroundingError

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")

SAID = [
    "A red star is on the left side of the image.",
    "The cats are sleeping on the sofa,\nand a dog is running!",
    "",
    "A man is walking quickly to the big house -- in town.",
    "the same words",
]
TRUE = [
    ["The image shows a red star at the left."],
    ["Two cats sleep on a couch while the dog runs.", "cats and a dog", "a sofa"],
    ["something else"],
    ["A person walks fast towards the large home in a city.", "Ünïcode ||| text"],
    ["other", "The same words."],
]


@pytest.fixture(scope="module")
def ours():
    """Beside another system, which must change nothing."""
    return caption_scores([SAID[::-1], SAID], TRUE)[1]


@pytest.fixture(scope="module")
def tokens():
    flat = iter(java.tokenize([*SAID, *(text for texts in TRUE for text in texts)]))
    return [next(flat) for _ in SAID], [[next(flat) for _ in texts] for texts in TRUE]


@needs_java
def test_tokens_are_lower_case_words_without_punctuation(tokens):
    said, true = tokens
    assert said[1] == "the cats are sleeping on the sofa and a dog is running"
    assert said[2] == "" and said[3].endswith("big house in town")
    assert true[3][1] == "ünïcode | | | text"


@needs_java
def test_meteor_and_cider_are_the_stock_scorers(ours, tokens):
    """The stock classes of pycocoevalcap, as COCO's evaluator and GLaMM's call them."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    caption = lambda texts: [{"caption": text} for text in texts]  # noqa: E731
    true = PTBTokenizer().tokenize({key: caption(texts) for key, texts in enumerate(TRUE)})
    said = PTBTokenizer().tokenize({key: caption([text]) for key, text in enumerate(SAID)})
    assert (list(said.values()), list(true.values())) == ([[text] for text in tokens[0]], tokens[1])
    whole, each = Meteor().compute_score(true, said)
    statistics, cider = ours
    assert meteor_scores(statistics).tolist() == pytest.approx(each, abs=1e-12)
    assert meteor_scores(statistics.sum(axis=0, keepdims=True)) == pytest.approx(whole, abs=1e-12)
    assert meteor_scores(statistics)[4] == 1.0 and meteor_scores(statistics)[2] == 0.0
    whole, each = Cider().compute_score(true, said)
    assert cider.tolist() == pytest.approx(each.tolist(), abs=1e-12) and cider.mean() == pytest.approx(whole)


@needs_java
def test_a_set_of_images_has_the_score_of_its_sum(ours):
    """A text that counts twice is two texts."""
    statistics, _ = ours
    doubled = np.concatenate([statistics, statistics[:1]]).sum(axis=0, keepdims=True)
    assert meteor_scores(np.array([[2, 1, 1, 1, 1]]) @ statistics) == pytest.approx(meteor_scores(doubled))


@needs_java
def test_scores_of_predictions_hold_captions(tmp_path):
    dataset = load_gcg(tiny_gcg.write(tmp_path, n=20))
    scores = score_predictions(open_predictions(tmp_path / "predictions", dataset), tiny_gcg.Vectors())
    assert scores.without_captions == "" and scores.captioned.sum() == 19  # one image has no caption
    meteor, cider = (scores.interval(name, draws=200) for name in ("METEOR", "CIDEr"))
    assert 0 < meteor.low < meteor.value < meteor.high < 1 and 0 < cider.low < cider.value < cider.high < 10
    for (image, found), row in zip(open_predictions(tmp_path / "predictions", dataset), scores.meteor, strict=True):
        assert row[0] == (len(found.caption.split()) if image.captions else 0)  # words of each image in its own row


def test_cider_of_no_words_is_zero():
    assert cider_scores([], []).tolist() == []
    assert cider_scores(["", "a star"], [[""], [""]]).tolist() == [0.0, 0.0]


# ---- no Java, or one that fails


def test_without_java_the_other_metrics_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    dataset = load_gcg(tiny_gcg.write(tmp_path, n=12))
    scores = score_predictions(open_predictions(tmp_path / "predictions", dataset), tiny_gcg.Vectors())
    assert scores.meteor is None and scores.cider is None
    assert np.isnan(scores.interval("METEOR").value) and np.isnan(scores.interval("CIDEr").value)
    assert scores.interval("recall", draws=20).value > 0
    assert "need a Java runtime, which is not here (Debian, Ubuntu: apt-get install default-jre" in scores.describe()
    with pytest.raises(GroundingError, match="need a Java runtime"):
        java.tokenize(["a star"])


def fake_java(folder, script, monkeypatch):
    """A program called java that is none."""
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'Could not reserve enough space' >&2; exit 3",
            "Java ended with status 3: Could not reserve enough space",
        ),
        ("exit 4", "Java ended with status 4: no message"),
        ("exit 0", "the tokenizer gave 0 lines for 2 texts"),
        ("exec sleep 60", "Java did not finish 2 texts within 1 seconds"),
    ],
)
def test_a_java_that_fails_is_told_and_never_waited_for(tmp_path, monkeypatch, script, message):
    fake_java(tmp_path, script, monkeypatch)
    with pytest.raises(GroundingError, match=message):
        java.tokenize(["a star", "a cat"], timeout=1.0)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo nonsense", "METEOR answered 'nonsense', which are not 23 numbers"),
        ("exit 0", "METEOR gave 0 lines for 2 texts"),
    ],
)
def test_a_meteor_that_answers_something_else_is_told(tmp_path, monkeypatch, script, message):
    fake_java(tmp_path, script, monkeypatch)
    with pytest.raises(GroundingError, match=message):
        java.meteor_statistics(["a star", "a cat"], [["a star"], ["a cat", "cats"]])
