import pytest
import spacy
import tiny_models
import torch
from tiny_groundings import nlp, word_spans

from core.errors import GroundingError
from core.phrases import find_phrases, load_nlp, phrase_at, similarity
from core.spans import decode_with_spans

TOKENIZERS = {"sentencepiece": tiny_models.llama_tokenizer, "bytes": tiny_models.qwen_tokenizer}


def tokenised(name: str, text: str) -> tuple[str, torch.Tensor, list[int]]:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else ids
    return *decode_with_spans(tokenizer, ids), ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_of_a_phrase_spell_its_central_noun_and_no_more(name: str) -> None:
    text, spans, _ = tokenised(name, "The image features a red umbrella and a blue zebra. The umbrella is next to it.")
    found = find_phrases(text, spans, nlp())
    assert [(phrase.text, phrase.root) for phrase in found] == [
        ("The image", "image"), ("a red umbrella", "umbrella"), ("a blue zebra", "zebra"), ("The umbrella", "umbrella"),
    ]  # fmt: skip
    for phrase in found:
        assert text[slice(*phrase.span)] == phrase.text
        assert text[slice(*phrase.root_span)] == phrase.root
        start, end = spans[list(phrase.tokens)].amin(0)[0].item(), spans[list(phrase.tokens)].amax(0)[1].item()
        assert start <= phrase.root_span[0]
        assert end >= phrase.root_span[1]
        assert text[start:end].strip() == phrase.root
    assert any(len(phrase.tokens) > 1 for phrase in found), "no word was split, so nothing was tested"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_letters_of_several_tokens_and_special_tokens_do_not_disturb(name: str) -> None:
    text, spans, ids = tokenised(name, "A naïve café 🦒 stands near the señor's umbrella.")
    found = find_phrases(text, spans, nlp())
    assert found[-1].root == "umbrella"
    assert max(found[-1].tokens) < len(ids) - 1  # the end-of-sequence token shows nothing
    assert all(phrase.tokens for phrase in found)


def test_every_token_that_overlaps_the_root_counts() -> None:
    spans = torch.tensor([[0, 1], [1, 4], [4, 6], [6, 6], [6, 10], [10, 10]])
    (phrase,) = find_phrases("a starfish", spans, nlp())
    assert phrase.root == "starfish"
    assert phrase.tokens == (1, 2, 4)


@pytest.mark.parametrize("text", ["", "  \n", "Yes.", "No!", "It is red."])
def test_answers_without_nouns_have_no_phrases(text: str) -> None:
    assert find_phrases(text, word_spans(text), nlp()) == ()


def test_pronouns_are_left_out_unless_asked_for() -> None:
    text = "The dog is brown and it is running."
    assert [phrase.text for phrase in find_phrases(text, word_spans(text), nlp())] == ["The dog"]
    assert [phrase.text for phrase in find_phrases(text, word_spans(text), nlp(), pronouns=True)] == ["The dog", "it"]


def test_any_words_can_be_a_phrase() -> None:
    text = "a star next to a rook"
    phrase = phrase_at(text, word_spans(text), (7, 14))
    assert phrase is not None
    assert (phrase.text, phrase.tokens) == ("next to", (2, 3))
    assert phrase_at(text, torch.zeros(6, 2, dtype=torch.int64), (7, 14)) is None
    for span in ((3, 3), (-1, 4), (5, 99)):
        with pytest.raises(GroundingError, match="are not a part of the answer"):
            phrase_at(text, word_spans(text), span)


def test_a_missing_pipeline_is_never_replaced_and_the_error_says_how_to_install_it(tmp_path) -> None:
    with pytest.raises(GroundingError, match="python -m spacy download en_core_web_huge"):
        load_nlp("en_core_web_huge")
    with pytest.raises(GroundingError, match="no spaCy pipeline could be read from the directory"):
        load_nlp(str(tmp_path))


def test_a_pipeline_loads_from_its_directory(tmp_path) -> None:
    nlp().to_disk(tmp_path / "mine")
    text = "a red star near the rook"
    assert find_phrases(text, word_spans(text), load_nlp(str(tmp_path / "mine"))) == find_phrases(
        text, word_spans(text), nlp()
    )


def test_what_a_pipeline_cannot_do_is_said() -> None:
    blank = spacy.blank("en")
    with pytest.raises(GroundingError, match="need a spaCy pipeline with a dependency parser"):
        find_phrases("a star", word_spans("a star"), blank)
    with pytest.raises(GroundingError, match="needs a spaCy pipeline with word vectors"):
        similarity(blank, "star", "moon")


def test_similarity_knows_the_same_word_synonyms_and_strangers() -> None:
    assert similarity(nlp(), "star", "star") == pytest.approx(1)
    assert similarity(nlp(), "stars", "Star") == pytest.approx(1)
    assert similarity(nlp(), "airplane", "plane") > 0.5 > similarity(nlp(), "airplane", "rook")
    assert similarity(nlp(), "man", "person") > 0.5
    assert similarity(nlp(), "star", "qwrtz") == 0
