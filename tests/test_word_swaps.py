"""Answers whose earlier words cannot be relied on: only names in answers change, only names said again are learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from core.errors import GroundingError
from core.training.templates import IGNORE
from core.weights import weights_path
from embedded.encoder_study.word_swaps import WordSwaps, name_ids, swap_words
from embedded.recipes.llava import conversation
from embedded.recipes.tokenizer import train_tokenizer
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import COLOURS

CAPTION = "The image shows a red star and a blue anchor. The star is on the left, the anchor is below the red star."
TURNS = (("Is there a star?", "Yes, there is a red star."), ("Where is the anchor?", "The blue anchor is below."))
ALL = WordSwaps(samples=1.0, words=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(weights_path("llava_two_stages"))


@pytest.fixture(scope="module")
def kinds(tokenizer):
    return name_ids(tokenizer)


@pytest.fixture
def tokens(tokenizer):
    return conversation(tokenizer, CAPTION, TURNS, 5, np.random.default_rng(0))


def test_every_name_of_the_scenes_is_a_token_of_the_embedded_models(tokenizer, kinds):
    assert [len(names) for names in kinds] == [len(CATEGORIES), len(COLOURS)]
    assert tokenizer.decode(kinds[0][:1]).strip() == CATEGORIES[0]


def test_names_are_swapped_within_their_kind_in_answers_alone(tokens, kinds):
    for seed in range(20):
        swapped = swap_words(tokens, kinds, np.random.default_rng(seed), ALL)
        changed = swapped.ids != tokens.ids
        assert changed.any() and not changed[tokens.labels == IGNORE].any()
        for names in kinds:
            was, now = torch.isin(tokens.ids, names), torch.isin(swapped.ids, names)
            assert torch.equal(was, now)
        assert not changed[~torch.isin(tokens.ids, torch.cat(kinds))].any()


def test_what_is_learnt_is_the_true_name_where_it_is_said_again(tokenizer, tokens, kinds):
    swapped = swap_words(tokens, kinds, np.random.default_rng(1), ALL)
    learnt = swapped.labels != IGNORE
    assert torch.equal(swapped.labels[learnt], tokens.ids[learnt])
    said = [word.strip() for word in tokenizer.batch_decode(swapped.labels[learnt][:, None])]
    order = ["star", "anchor", "red", "star"]  # the description's; the questions come in some order
    assert said[:4] == order and sorted(said[4:]) == ["anchor", "blue", "red", "star"]


def test_the_names_read_before_do_not_tell_the_name_that_is_learnt(tokens, kinds):
    """With every name drawn anew, one that was said is found among the earlier names no more often than by chance."""
    found, rng = [], np.random.default_rng(0)
    categories = kinds[0]
    for _ in range(400):
        swapped = swap_words(tokens, kinds, rng, ALL)
        place = int(((swapped.labels != IGNORE) & torch.isin(tokens.ids, categories)).nonzero()[0])
        earlier = swapped.ids[:place][(tokens.labels[:place] != IGNORE) & torch.isin(tokens.ids[:place], categories)]
        found.append(bool((earlier == tokens.ids[place]).any()))
    chance = 1 - (1 - 1 / len(categories)) ** 2  # two names stand before it
    assert np.mean(found) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 400) ** 0.5)


def test_shares_are_what_they_say(tokens, kinds):
    rng, swaps = np.random.default_rng(0), WordSwaps(samples=0.3, words=0.5)
    names = (tokens.labels != IGNORE) & torch.isin(tokens.ids, torch.cat(kinds))
    results = [swap_words(tokens, kinds, rng, swaps) for _ in range(600)]
    touched = [one for one in results if one is not tokens]
    assert len(touched) / 600 == pytest.approx(0.3, abs=0.08)
    kept = np.mean([(one.ids[names] == tokens.ids[names]).float().mean().item() for one in touched])
    assert kept == pytest.approx(0.5 + 0.5 * np.mean([1 / len(CATEGORIES), 1 / len(COLOURS)]), abs=0.05)


def test_nothing_is_swapped_without_a_share_or_a_name_that_is_said_again(tokenizer, tokens, kinds):
    rng = np.random.default_rng(0)
    assert swap_words(tokens, kinds, rng, WordSwaps(samples=0.0, words=1.0)) is tokens
    assert torch.equal(swap_words(tokens, kinds, rng, WordSwaps(samples=1.0, words=0.0)).ids, tokens.ids)
    once = conversation(tokenizer, "", (("What is there?", "A red star."),), 5, rng, described=False)
    assert swap_words(once, kinds, rng, ALL) is once


def test_names_of_several_tokens_are_left_out_and_shares_beyond_one_refused():
    small = train_tokenizer(["a red star"], size=300)
    assert sum(len(names) for names in name_ids(small)) < len(CATEGORIES) + len(COLOURS)
    with pytest.raises(GroundingError, match=r"share words of swapped words lies in 0\.\.1, got 1\.5"):
        WordSwaps(words=1.5)
