"""Vectors of short texts: of a real tiny BERT against one text at a time, and of spaCy."""

from __future__ import annotations

import numpy as np
import pytest
import spacy
import torch
from tiny_coco import vectors_nlp

from core.errors import GroundingError
from core.phrases import load_nlp, similarity
from core.text_encoders import HiddenStates, TextEncoder, load_text_encoder

TEXTS = ["a star", "the red cat on a star", "star", "", "cat star cat star cat star cat"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny BERT of random weights as `save_pretrained` leaves it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "star", "cat", "red", "on"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@torch.inference_mode()
def one_at_a_time(directory, text):
    """The mean over all tokens of a single text, as GLaMM's evaluator takes it."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory)
    states = model(**tokenizer(text, return_tensors="pt", max_length=512, truncation=True)).last_hidden_state[0]
    return states.mean(0).numpy(), states[0].numpy()


def test_padding_and_order_change_nothing(directory):
    encoder = load_text_encoder(str(directory), device="cpu")
    found = encoder.encode(TEXTS)
    assert found.shape == (5, 24) and found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        assert vector == pytest.approx(one_at_a_time(directory, text)[0], abs=1e-6)
    assert isinstance(encoder, TextEncoder)
    assert encoder.name == "tiny-bert, mean of the last hidden states"
    assert encoder.encode([]).shape == (0, 24)


def test_small_batches_and_the_first_token(directory):
    encoder = load_text_encoder(str(directory), pooling="first", device="cpu")
    assert encoder.name.endswith("first token of the last hidden states")
    small = HiddenStates(encoder._model, encoder._tokenizer, name="tiny", pooling="first", batch_size=2)
    for text, first, second in zip(TEXTS, encoder.encode(TEXTS), small.encode(TEXTS), strict=True):
        assert first == pytest.approx(one_at_a_time(directory, text)[1], abs=1e-6)
        assert first == pytest.approx(second, abs=1e-6)


def test_spacy_vectors_are_those_of_similarity():
    nlp = load_nlp()
    encoder = load_text_encoder("spacy", nlp=nlp)
    first, second = encoder.encode(["A red star", "a blue star"])
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert cosine == pytest.approx(similarity(nlp, "a red star", "a blue star"), abs=1e-6)
    assert encoder.name == f"word vectors of {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}"
    assert not load_text_encoder("spacy", nlp=vectors_nlp()).encode(["unheard of"]).any()
    assert encoder.encode([]).shape == (0, nlp.vocab.vectors_length)


def test_encoders_that_cannot_be_had_are_refused(directory, tmp_path):
    with pytest.raises(GroundingError, match="'spacy' takes the vectors of a pipeline: give nlp=load_nlp"):
        load_text_encoder()
    with pytest.raises(GroundingError, match="has no word vectors to compare phrases by"):
        load_text_encoder("spacy", nlp=spacy.blank("en"))
    with pytest.raises(GroundingError, match="no text encoder could be loaded from"):
        load_text_encoder(str(tmp_path))
    with pytest.raises(GroundingError, match="no text encoder could be loaded from 'somebody/nowhere'"):
        load_text_encoder("somebody/nowhere")
    with pytest.raises(GroundingError, match="pooling 'max' is not known; choose one of mean, first"):
        load_text_encoder(str(directory), pooling="max")
