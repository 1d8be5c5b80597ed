import pytest
import torch
from tiny_groundings import generation

from core.attention import aggregate, mean_over_heads, normalize, remove_corners, select_heads, to_grid
from core.errors import GroundingError
from core.geometry import View


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_normalised_maps_sum_to_zero_over_the_sequence() -> None:
    attention = maps(37, 24) / 24
    assert normalize(attention).sum(0).abs().max() < 1e-6


def test_normalisation_removes_whatever_every_token_shares() -> None:
    attention = maps(9, 24)
    register = torch.zeros(24)
    register[5] = 3.0
    torch.testing.assert_close(normalize(attention + register), normalize(attention))


def test_normalisation_is_equation_3_written_as_a_loop() -> None:
    attention = maps(5, 7)
    expected = [[float(row[j] - sum(other[j] for other in attention) / 5) for j in range(7)] for row in attention]
    torch.testing.assert_close(normalize(attention), torch.tensor(expected))


def test_no_normalisation_and_an_empty_answer_change_nothing() -> None:
    attention = maps(3, 4)
    assert torch.equal(normalize(attention, "none"), attention)
    assert normalize(torch.zeros(0, 4)).shape == (0, 4)


def test_the_mean_may_leave_out_tokens_that_wrote_nothing():
    attention, written = maps(4, 3), torch.tensor([True, True, True, False])
    expected = attention - attention[:3].mean(0)
    torch.testing.assert_close(normalize(attention, "words", written=written), expected)
    assert torch.equal(normalize(attention, "words", written=written & False), normalize(attention))


def test_the_ratio_has_mean_one_where_anything_was_seen_and_ignores_a_cells_brightness():
    attention = maps(4, 3)
    attention[:, 1] = 0
    found = normalize(attention, "ratio")
    torch.testing.assert_close(found.mean(0), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(normalize(attention * torch.tensor([1.0, 5.0, 7.0]), "ratio"), found)


def test_the_prompts_map_is_subtracted_from_every_token():
    attention, baseline = maps(4, 3), torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(normalize(attention, "prompt", baseline=baseline) + baseline, attention)


@pytest.mark.parametrize(("how", "needs"), [("prompt", "map of the prompt"), ("words", "which tokens wrote")])
def test_a_normalization_says_what_it_lacks(how, needs):
    with pytest.raises(GroundingError, match=needs):
        normalize(maps(2, 3), how)


@pytest.mark.parametrize("how", ["mean", "max", "first"])
def test_aggregating_one_token_gives_its_map(how: str) -> None:
    attention = maps(6, 8)
    assert torch.equal(aggregate(attention, [4], how), attention[4])


def test_aggregations_agree_with_a_loop_and_do_not_depend_on_the_order_of_tokens() -> None:
    attention = maps(6, 8)
    expected = {
        "mean": [sum(float(attention[t, j]) for t in (1, 3, 4)) / 3 for j in range(8)],
        "max": [max(float(attention[t, j]) for t in (1, 3, 4)) for j in range(8)],
        "first": attention[1].tolist(),
    }
    for how, values in expected.items():
        for tokens in ([1, 3, 4], [4, 1, 3]):
            torch.testing.assert_close(aggregate(attention, tokens, how), torch.tensor(values))


def test_permuting_heads_and_layers_does_not_change_their_mean() -> None:
    attention = maps(3, 4, 5, 6)
    shuffled = attention[:, torch.randperm(4)][:, :, torch.randperm(5)]
    torch.testing.assert_close(mean_over_heads(shuffled), mean_over_heads(attention))


def test_selecting_all_heads_is_their_mean_and_one_head_is_itself() -> None:
    attention = maps(3, 4, 5, 6)
    torch.testing.assert_close(select_heads(attention), mean_over_heads(attention))
    torch.testing.assert_close(select_heads(attention, layers=[2], heads=[1]), attention[:, 2, 1])
    torch.testing.assert_close(select_heads(attention, heads=[-2]), attention[:, :, 3].mean(1))


def test_a_grid_leaves_thumbnail_and_newline_slots_out() -> None:
    source = generation()
    grid = to_grid(torch.arange(source.attention.shape[1]).float(), source.view("grid"))
    assert grid.shape == (4, 6)
    assert grid[0].tolist() == [4, 5, 6, 7, 8, 9]
    assert grid[1, 0] == 11  # 10 is the first row's newline
    assert to_grid(source.attention, source.view("base")).shape == (len(source.token_ids), 2, 2)


def test_removed_corners_hold_the_minimum_and_the_rest_stays() -> None:
    grid = maps(2, 3, 4)
    cleaned = remove_corners(grid)
    for row, column in ((0, 0), (0, 3), (2, 0), (2, 3)):
        assert torch.equal(cleaned[:, row, column], grid.amin((1, 2)))
    assert torch.equal(cleaned[:, 1], grid[:, 1])
    assert torch.equal(grid, maps(2, 3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: normalize(maps(2, 3), "softmax"),
            "normalization 'softmax' is not known; choose one of sequence, none, words, ratio, prompt",
        ),
        (lambda: aggregate(maps(2, 3), [0], "median"), "aggregation 'median' is not known"),
        (lambda: aggregate(maps(2, 3), []), "at least one token"),
        (lambda: aggregate(maps(2, 3), [2]), r"token selection \[2\] must name at least one of 0\.\.1"),
        (lambda: aggregate(maps(2, 3), [-1]), "token selection"),
        (lambda: select_heads(maps(1, 2, 3, 4), layers=[2]), r"layer selection \[2\]"),
        (lambda: select_heads(maps(1, 2, 3, 4), heads=[]), "head selection"),
        (
            lambda: to_grid(maps(2, 3), View("v", torch.tensor([[0, 3]]), (0.0, 0.0, 1.0, 1.0))),
            "reads visual tokens 0..3",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(GroundingError, match=message):
        call()
