"""Batches planned by length and memory change no record, and running out of memory changes the batches alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_groundings import nlp
from tiny_models import tiny_llava

from core import planning
from core.errors import GroundingError
from core.generation import Generation
from core.lmm import LMM, load_lmm
from core.planning import AUTO, FixedPlan, LengthPlan, free_memory, out_of_memory
from core.records import RunStore
from core.run import RunSummary, ground_dataset

SIZES = {"a": (140, 90), "b": (60, 180), "c": (100, 100), "d": (140, 90), "e": (180, 60), "f": (90, 140)}  # (W, H)
ANSWER = "The image features a cat and a red cup on the table."


def images(pictures: dict[str, Image.Image]) -> list[tuple[str, Image.Image]]:
    return [(id, pictures["landscape"].resize(size)) for id, size in SIZES.items()]


def run(directory: Path, lmm: LMM, items: list, **options: Any) -> tuple[RunStore, RunSummary]:
    store = RunStore(directory, {"what": "a test"})
    options = {"max_new_tokens": 8, "progress": False} | options
    return store, ground_dataset(items, "What is it?", lmm=lmm, segmenter=None, nlp=nlp(), store=store, **options)


def tolerance(generation: Generation) -> float:
    """What float32 may change, and what two records lose by their float16 residuals."""
    residuals = generation.attention - generation.attention.mean(dim=0)
    return 1e-5 + 2 * float(residuals.abs().max()) / 2048


def planner(lmm: LMM, *, budget: int, new: int = 8, per_head: bool = False) -> LengthPlan:
    return LengthPlan(
        lmm,
        prompt_of=lambda id: "What is it?",
        answer_of=lambda id: None,
        max_new_tokens=new,
        per_head=per_head,
        budget=budget,
    )


@pytest.fixture
def batches(lmms, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the tiny LLaVA-NeXT is asked to answer, as they come."""
    seen: list[int] = []
    generate = LMM.generate

    def counted(self, image, prompt, **options):
        seen.append(len(image))
        return generate(self, image, prompt, **options)

    monkeypatch.setattr(LMM, "generate", counted)
    return seen


def test_planned_batches_give_the_records_of_single_images(lmms, pictures, tmp_path, batches) -> None:
    items = images(pictures)
    one, first = run(tmp_path / "one", lmms["llava_next"], items)
    assert batches == [1] * 6
    many, second = run(tmp_path / "many", lmms["llava_next"], items, batch_size=AUTO)
    assert len(batches[6:]) < 6 and sum(batches[6:]) == 6
    assert first.grounded == second.grounded == tuple(SIZES)
    for id in SIZES:
        alone, together = one.read(id).generation, many.read(id).generation
        if id not in second.near_ties:
            assert alone.token_ids.tolist() == together.token_ids.tolist()
            torch.testing.assert_close(together.attention, alone.attention, atol=tolerance(alone), rtol=0)
    assert len(second.near_ties) < 6 and first.near_ties == ()


def test_running_out_of_memory_halves_the_batch_and_goes_on(lmms, pictures, tmp_path, batches, monkeypatch) -> None:
    lmm = lmms["llava"]  # as many tokens for every image: one batch
    forward = lmm.model.forward

    @functools.wraps(forward)  # transformers reads its signature
    def small(*args, **inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 97.00 GiB")
        return forward(*args, **inputs)

    whole, _ = run(tmp_path / "whole", lmm, images(pictures), batch_size=AUTO)
    assert batches == [6]
    monkeypatch.setattr(lmm.model, "forward", small)
    store, summary = run(tmp_path / "halved", lmm, images(pictures), batch_size=AUTO)
    assert batches == [6, 6, 3, 1, 1, 1, 1, 1, 1]
    assert summary.grounded == tuple(SIZES) and summary.failed == ()
    for id in SIZES:
        assert store.read(id).generation.text == whole.read(id).generation.text
    with pytest.raises(torch.OutOfMemoryError, match=r"97\.00 GiB"):
        run(tmp_path / "fixed", lmm, images(pictures), batch_size=3)


def test_an_image_that_does_not_fit_alone_stops_the_run(lmms, pictures, tmp_path, monkeypatch) -> None:
    @functools.wraps(lmms["llava"].model.forward)
    def full(*args, **inputs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(lmms["llava"].model, "forward", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(tmp_path, lmms["llava"], images(pictures)[:2], batch_size=AUTO)
    assert RunStore(tmp_path).done() == set()


def test_broken_images_and_given_answers_go_through_a_plan(lmms, pictures, tmp_path) -> None:
    items = [("gone", "gone.png"), *images(pictures)[:3]]
    answers = {id: ANSWER * (1 + number) for number, (id, _) in enumerate(items)}
    one, _ = run(tmp_path / "one", lmms["llava_next"], items, answers=answers)
    many, summary = run(tmp_path / "many", lmms["llava_next"], items, answers=answers, batch_size=AUTO)
    assert (summary.grounded, summary.failed) == (("a", "b", "c"), ("gone",))
    for id in "abc":
        found, expected = many.read(id).generation, one.read(id).generation
        torch.testing.assert_close(found.attention, expected.attention, atol=tolerance(expected), rtol=0)
    assert run(tmp_path / "many", lmms["llava_next"], items, answers=answers, batch_size=AUTO)[1].skipped == (
        "gone",
        *"abc",
    )


def test_a_choice_between_equal_tokens_is_told(tmp_path, pictures) -> None:
    lmm = load_lmm(tiny_llava(tmp_path / "model"), device="cpu")
    items = images(pictures)[:2]
    assert run(tmp_path / "apart", lmm, items, batch_size=2)[1].near_ties == ()
    with torch.no_grad():  # every word has a twin
        head = lmm.model.get_output_embeddings().weight
        head[1::2] = head[0:-1:2]
    store, summary = run(tmp_path / "tied", lmm, items, batch_size=2)
    assert summary.near_ties == ("a", "b")
    assert store.read("a").generation.model["batch_size"] == 2
    _, alone = run(tmp_path / "alone", lmm, items)
    assert alone.near_ties == ()


lengths = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.tuples(st.integers(1, 4000), st.integers(0, 600))
)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, budget=st.integers(0, 2**32), per_head=st.booleans())
def test_a_plan_holds_every_image_once_within_budget_and_padding(lengths, budget, per_head, lmms) -> None:
    plan = planner(lmms["llava"], budget=budget, per_head=per_head)
    plan._lengths = lengths
    batches = plan.again(list(lengths))
    assert sorted(id for batch in batches for id in batch) == sorted(lengths)
    totals = [[sum(lengths[id]) for id in batch] for batch in batches]
    assert sorted((total for each in totals for total in each), reverse=True) == [t for each in totals for t in each]
    for batch, total in zip(batches, totals, strict=True):
        assert len(batch) == 1 or plan._bytes(batch) <= budget
        assert len(batch) <= planning.MOST
        assert min(total) >= (1 - planning.PADDING) * max(total)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 40))
def test_half_the_budget_is_at_most_half_the_batch(count, lmms) -> None:
    plan = planner(lmms["llava"], budget=2**50)
    plan._lengths = {str(number): (600, 100) for number in range(count)}
    ids = list(plan._lengths)
    while len(ids) > 1:
        assert plan.smaller(ids)
        batches = plan.again(ids)
        assert len(batches[0]) == max(1, len(ids) // 2)
        ids = batches[0]
    assert not plan.smaller(ids)


def test_the_prompt_is_counted_once_for_each_size_and_as_the_model_sees_it(lmms, pictures, monkeypatch) -> None:
    lmm = lmms["llava_next"]
    asked: list[tuple[int, int]] = []
    count = LMM.prompt_length

    def counted(self, image, prompt):
        asked.append(image.size)
        return count(self, image, prompt)

    monkeypatch.setattr(LMM, "prompt_length", counted)
    plan = planner(lmm, budget=2**40)
    opened = dict(images(pictures))
    plan.batches(opened)
    assert sorted(asked) == sorted(set(SIZES.values()))
    for id, image in opened.items():
        seen = lmm.generate(image, "What is it?", max_new_tokens=1).prompt_ids
        assert plan._lengths[id] == (len(seen), 8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_there_is_some_memory() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("size", [0, -1, True, "many", 1.5])
def test_other_batch_sizes_are_refused(size: Any) -> None:
    with pytest.raises(GroundingError, match="batch_size must be at least 1 or 'auto', not"):
        FixedPlan(size)
