"""Equation 3's effect: token maps, points with and without, and the paired comparison on planted artefacts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_coco
import torch
from tiny_coco import MASKS, grounding, matcher

from analysis.normalization import (
    KINDS,
    kinds_for,
    maps_reading,
    normalization_effect,
    points_by_normalization,
    reading,
    token_maps,
)
from analysis.scoring.coco import load_instances
from core.attention import NORMALIZATIONS
from core.errors import GroundingError
from core.options import GroundOptions

GRID = (5, 6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_instances(tiny_coco.write(tmp_path_factory.mktemp("coco")))


def with_register(image_id: int, noun: str, mask: np.ndarray):
    """An answer whose every token looks hardest at one background corner, and whose noun also looks at its object."""
    size = tiny_coco.SIZES[image_id]
    maps = np.full((3, *GRID), 0.01)
    maps[:, -1, -1] = 0.5
    prompt = torch.from_numpy(maps[0]).flatten().float()
    rows, columns = np.nonzero(mask)
    maps[1, int(rows.mean() * GRID[0] / size[0]), int(columns.mean() * GRID[1] / size[1])] = 0.2
    answer = grounding(size, [(noun, (0.5, 0.5), [mask])], maps=maps)
    return str(image_id), replace(answer, generation=replace(answer.generation, prompt_attention=prompt))


def records():
    return [with_register(3, "star", MASKS[1][3]), with_register(7, "cat", MASKS[4][3])]


def test_after_is_before_minus_the_mean_over_all_tokens():
    _, answer = records()[0]
    maps = token_maps(answer.generation)
    assert maps.tokens == ("a", "star")  # the end of the sequence does not show, but counts in the mean
    torch.testing.assert_close(maps.after, maps.before - maps.mean)
    everything = answer.generation.attention.reshape(-1, *GRID)
    torch.testing.assert_close(maps.mean, everything.mean(0))
    hidden = everything[-1] - maps.mean
    torch.testing.assert_close(maps.after.sum(0) + hidden, torch.zeros(GRID), atol=1e-6, rtol=0)


def test_a_limit_shortens_the_tokens_and_not_the_mean():
    _, answer = records()[0]
    whole, short = token_maps(answer.generation), token_maps(answer.generation, limit=1)
    assert short.tokens == ("a",)
    assert torch.equal(short.mean, whole.mean) and torch.equal(short.before, whole.before[:1])


def test_the_register_is_seen_before_and_gone_after():
    _, answer = records()[0]
    text = maps_reading(token_maps(answer.generation))
    assert text.startswith("Before, one and the same cell is the brightest in 100 % of the 2 maps")
    assert "more than 50 %" in text


def test_control_characters_and_blanks_are_made_visible():
    _, answer = records()[0]
    odd = replace(answer.generation, text="a st\x08r")
    assert token_maps(odd).tokens == ("a", "st·r")


def test_normalisation_moves_the_points_from_the_register_to_the_object(dataset):
    for (_, answer), mask in zip(records(), (MASKS[1][3], MASKS[4][3]), strict=True):
        height, width = answer.image_size
        (((x_none, y_none), (x, y)),) = points_by_normalization(answer)
        assert x_none > width * 0.8 and y_none > height * 0.8
        assert mask[int(y), int(x)]
    effect = normalization_effect(records(), dataset, matcher())
    assert effect.without.value == 0.0 and effect.with_eq3.value == 1.0
    assert effect.difference.value == 1.0 and effect.n_phrases == 2
    assert effect.chance == pytest.approx((2650 / 9600 + 3100 / 6600) / 2)
    assert "raises point accuracy" in reading(effect)
    assert effect.table()["PAcc"].tolist()[:3] == [0.0, 100.0, 100.0]


def test_the_points_are_the_pipelines(dataset):
    from core.pipeline import ground

    for _, answer in records():
        found = points_by_normalization(answer, tuple(KINDS))
        picture = np.zeros((*answer.image_size, 3), dtype=np.uint8)
        for column, kind in enumerate(KINDS):
            options = {"segmenter": None, "nlp": None, "phrases": answer.phrases, "normalization": kind}
            expected = ground(answer.generation, picture, **options).points
            assert np.array_equal(found[:, column], expected.numpy())


def test_every_normalisation_of_core_has_its_row_and_the_two_rows_of_the_paper_are_those_of_the_comparison(dataset):
    effect = normalization_effect(records(), dataset, matcher())
    table = effect.variants.set_index("taken from the maps")
    assert set(KINDS) == set(NORMALIZATIONS) and list(table.index) == list(KINDS.values())
    assert table.loc["none", "PAcc"] == 0.0 and table.loc["none", "difference"] == -100.0
    assert table.loc[KINDS["sequence"], "PAcc"] == 100.0 and np.isnan(table.loc[KINDS["sequence"], "difference"])
    assert table.loc[KINDS["prompt"], "PAcc"] == 100.0  # the prompt's words look at the register, too
    assert (table["n_phrases"] == 2).all()


def test_the_map_of_a_prompt_is_not_compared_where_heads_are_selected():
    assert "prompt" in kinds_for(GroundOptions()) and "prompt" not in kinds_for(GroundOptions(heads=(0,)))
    _, answer = records()[0]
    generation = replace(answer.generation, prompt_attention=None)
    with pytest.raises(GroundingError, match="map of the prompt's words"):
        points_by_normalization(replace(answer, generation=generation), ("prompt",))


def test_records_of_selected_heads_are_compared_by_the_maps_that_were_kept():
    _, answer = records()[0]
    per_head = torch.stack([answer.generation.attention, torch.rand(3, 30)], 1)[:, None]
    heads = GroundOptions(heads=(0,))
    selected = replace(answer, options=heads, generation=replace(answer.generation, attention_per_head=per_head))
    assert np.array_equal(points_by_normalization(selected), points_by_normalization(answer))


def test_the_other_way_round_is_said_the_other_way_round(dataset):
    """Every token looks at the object, and the noun alone a little at the corner: eq. 3 leaves the corner."""
    other_way = []
    for image_id, answer in records():
        seen = answer.generation.attention[1].clone()
        seen[-1] = 0.01
        noun = seen.clone()
        noun[-1] = 0.05
        generation = replace(answer.generation, attention=torch.stack([2 * seen, noun, 2 * seen]))
        other_way.append((image_id, replace(answer, generation=generation)))
    effect = normalization_effect(other_way, dataset, matcher())
    assert effect.without.value == 1.0 and effect.difference.value == -1.0
    assert "lowers point accuracy" in reading(effect)


def test_phrases_that_match_nothing_leave_nothing_to_compare(dataset):
    effect = normalization_effect([with_register(3, "rock", MASKS[1][3])], dataset, matcher())
    assert effect.n_phrases == 0 and np.isnan(effect.difference.value)
    assert reading(effect).startswith("No phrase matched")
    nothing = normalization_effect([], dataset, matcher())
    assert nothing.n_phrases == 0


def test_an_empty_answer_has_no_maps():
    maps = token_maps(grounding((40, 60), []).generation)
    assert maps.tokens == () and maps.before.shape == (0, 5, 6)
    assert "empty" in maps_reading(maps)
