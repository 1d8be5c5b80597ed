import random
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc
from tiny_groundings import nlp

from core.weights import weights_path
from embedded.english.gold_chunks import SEEN, UNSEEN
from embedded.english.pipeline import (
    Recipe,
    build,
    examples,
    measure,
    score_chunks,
    texts,
    train,
    unbracket,
    write_card,
)
from embedded.english.sentences import sample
from embedded.english.trees import Node, Parsed
from embedded.scenes.scenes import make_scene


def test_sentences_tokenise_as_spacy_tokenises_them_and_their_trees_are_trees() -> None:
    blank = spacy.blank("en")
    for text in texts(random.Random(11), 300):
        doc = Doc(blank.vocab, text.words, text.spaces, heads=text.heads, deps=text.deps, tags=text.tags, pos=text.pos)
        assert [token.text for token in blank.make_doc(doc.text)] == text.words
        roots = [token.i for token in doc if token.dep_ == "ROOT"]
        assert all(token.head.i == token.i for token in doc if token.i in roots)
        assert all(any(ancestor.i in roots for ancestor in token.ancestors) for token in doc if token.i not in roots)
        assert [sentence.start for sentence in doc.sents] == [i for i, start in enumerate(text.starts) if start]


def test_trees_are_written_out_in_order_with_absolute_heads() -> None:
    the_star = Node("star", "NN").after("det", Node("the", "DT"))
    text = Parsed()
    text.add(Node("shines", "VBZ").after("nsubj", the_star).then("punct", Node(".", ".")))
    text.add(Node("Yes", "UH").then("punct", Node(".", ".")))
    assert text.words == ["the", "star", "shines", ".", "Yes", "."]
    assert text.heads == [1, 2, 2, 2, 4, 4]
    assert text.deps == ["det", "nsubj", "ROOT", "punct", "ROOT", "punct"]
    assert text.starts == [True, False, False, False, True, False]
    assert text.spaces == [True, True, False, True, False, True]


def test_the_same_seed_writes_the_same_texts() -> None:
    assert sample(random.Random(3), 2) == sample(random.Random(3), 2) != sample(random.Random(4), 2)


def test_brackets_mark_chunks() -> None:
    assert unbracket("[A cat] on [the mat].") == ("A cat on the mat.", {(0, 5), (9, 16)})
    assert all("[" not in unbracket(text)[0] and len(unbracket(text)[1]) > 1 for text in (*SEEN, *UNSEEN))


def test_a_chunk_score_counts_exact_spans() -> None:
    text, spans = unbracket("[A red star] is near [the blue rook].")
    score = score_chunks(nlp(), [(text, spans), (text, {(0, 5), (19, 32)})])
    assert (score.found, score.marked, score.right) == (4, 4, 3)
    assert (score.precision, score.recall, score.f1) == (0.75, 0.75, 0.75)


def test_the_recipe_learns_and_writes_a_pipeline_with_its_card(tmp_path: Path) -> None:
    recipe = Recipe(texts=480, first=100, rows=400, width=32, depth=2)
    small = build(recipe)
    train(small, recipe, log=False)
    measured = measure(small, recipe, count=40)
    assert measured["tags"] > 0.5
    small.to_disk(tmp_path)
    write_card(tmp_path, recipe, measured)
    card = (tmp_path / "README.md").read_text()
    assert f"| {100 * measured['unseen F']:.1f} |" in card
    assert "seed=7" in card
    again = spacy.load(tmp_path)
    (pair,) = examples(again, texts(random.Random(5), 1))
    assert [token.tag_ for token in again(pair.reference.text)] == [token.tag_ for token in small(pair.reference.text)]


def test_the_shipped_pipeline_is_small_and_scores_what_its_card_says() -> None:
    directory = weights_path("en")
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 4e6
    card = (directory / "README.md").read_text()
    measured = measure(nlp(), Recipe(), count=60)
    for name in ("seen F", "unseen F"):
        assert f"| {100 * measured[name]:.1f} |" in card
        assert measured[name] > 0.9
    assert measured["LAS"] > 0.9


@pytest.mark.parametrize("index", range(6))
def test_descriptions_and_questions_of_scenes_parse_into_their_objects(index: int) -> None:
    scene = make_scene("val", index, size=(64, 80))
    doc = nlp()(scene.caption)
    roots = [chunk.root.text for chunk in doc.noun_chunks]
    assert {thing.category for thing in scene.objects} <= set(roots)
    named = [chunk.text.split() for chunk in doc.noun_chunks]
    for thing in scene.objects:
        assert any(thing.colour in words and thing.category in words for words in named)
    for question, answer in scene.questions:
        for text in (question, answer):
            for token in nlp()(text):
                if token.text in {thing.category for thing in scene.objects}:
                    assert token.pos_ == "NOUN", text
