"""The captured rows are eager attention's own; the fast path is untouched; nothing leaks."""

import threading

import pytest
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange, reduce
from tiny_models import tiny_llava
from transformers.masking_utils import AttentionMaskInterface

from core import capture
from core.errors import GroundingError
from core.lmm import LMM, load_lmm

PROMPT = "Describe the image in detail."
NEW = 40  # more than one block of rows


@pytest.fixture(scope="module")
def lmms(checkpoints):
    """In float64, where the two kernels' rounding, which differs from processor to processor, hides nothing."""
    return {name: load_lmm(path, device="cpu", dtype=torch.float64) for name, path in checkpoints.items()}


def eager(lmm: LMM) -> torch.nn.Module:
    """The same weights with transformers' eager attention."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(lmm.name, attn_implementation="eager")
    return model.to(lmm.model.dtype).eval()


def eager_generate(lmm: LMM, images: list, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Reference: `generate(output_attentions=True)`; per sample (new ids, weights [t, l, n, k])."""
    inputs = lmm.processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": lmm.processor.tokenizer.pad_token_id}
    output = eager(lmm).generate(**inputs, **options, output_attentions=True, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    results = []
    for b, ids in enumerate(inputs["input_ids"]):
        columns = (ids == lmm.model.config.image_token_id).nonzero()[:, 0]
        steps = [torch.stack([layer[b, :, -1, columns] for layer in step]) for step in output.attentions]
        results.append((output.sequences[b, length:], torch.stack(steps)))
    return results


def eager_forward(lmm: LMM, image, text: str, answer: torch.Tensor) -> torch.Tensor:
    """Reference: one eager forward of prompt and answer; weights [T, l, n, k] of every position."""
    inputs = dict(lmm.processor(images=[image], text=[text], return_tensors="pt"))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, len(answer)))
    columns = (inputs["input_ids"][0] == lmm.model.config.image_token_id).nonzero()[:, 0]
    with torch.no_grad():
        attentions = eager(lmm)(**inputs, output_attentions=True).attentions
    return rearrange(torch.stack(attentions)[:, 0][..., columns], "l n t k -> t l n k")


def rendered(lmm: LMM, prompt: str = PROMPT) -> str:
    return f"USER: {lmm.family.image_block.format(placeholder=lmm.family.placeholder)}\n{prompt} ASSISTANT:"


def asked_rows(lmm: LMM, found) -> range:
    """Positions of the prompt's words behind the image, without the last, which predicts the answer's first token."""
    last = int((found.prompt_ids == lmm.model.config.image_token_id).nonzero().max())
    return range(last + 1, len(found.prompt_ids) - 1)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
def test_generate_equals_eager(lmm, pictures, shape):
    text = rendered(lmm)
    ((ids, weights),) = eager_generate(lmm, [pictures[shape]], [text])
    found = lmm.generate(pictures[shape], text, max_new_tokens=NEW, per_head=True)
    assert torch.equal(found.token_ids, ids[: len(found.token_ids)])
    assert len(found.token_ids) > capture.ROWS_AT_ONCE
    close(found.attention_per_head, weights[: len(found.token_ids)])
    close(found.attention, reduce(weights[: len(found.token_ids)], "t l n k -> t k", "mean"))
    mean_only = lmm.generate(pictures[shape], text, max_new_tokens=NEW)
    assert mean_only.attention_per_head is None
    close(mean_only.attention, found.attention)


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
@pytest.mark.parametrize("row", ["predicting", "self"])
def test_replay_equals_eager(lmm, pictures, shape, row):
    text, answer = rendered(lmm), lmm.processor.tokenizer("The cat is next to a red cup of coffee. " * 3)["input_ids"]
    answer = torch.tensor(answer)
    weights = eager_forward(lmm, pictures[shape], text, answer)
    start = len(weights) - len(answer) - (row == "predicting")
    weights = weights[start : start + len(answer)]
    found = lmm.replay(pictures[shape], text, answer, per_head=True, row=row)
    assert torch.equal(found.token_ids, answer)
    close(found.attention_per_head, weights)
    close(found.attention, weights.mean((1, 2)))
    close(lmm.replay(pictures[shape], text, answer, row=row).attention, found.attention)


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
def test_the_prompts_own_map_equals_eager(lmm, pictures, shape):
    answer = torch.tensor(lmm.processor.tokenizer("The cat is next to a cup.", add_special_tokens=False)["input_ids"])
    text = rendered(lmm, "Is there a red umbrella next to the cup?")
    weights = eager_forward(lmm, pictures[shape], text, answer)
    generated = lmm.generate(pictures[shape], text, max_new_tokens=3)
    asked = asked_rows(lmm, generated)
    expected = weights[asked.start : asked.stop].mean((0, 1, 2))
    assert len(asked) > 5
    close(generated.prompt_attention, expected)
    for row in ("predicting", "self"):
        close(lmm.replay(pictures[shape], text, answer, row=row).prompt_attention, expected)
    others = [pictures["small"], pictures[shape]]  # padded on the left, answers of other lengths
    texts, answers = [rendered(lmm, "What is there? " * 4), text], ["The cup is red. " * 3, answer]
    close(lmm.generate(others, texts, max_new_tokens=3)[1].prompt_attention, expected)
    close(lmm.replay(others, texts, answers)[1].prompt_attention, expected)


def test_a_prompt_that_ends_with_the_image_has_no_map(lmm, pictures):
    text = f"USER: What? {lmm.family.image_block.format(placeholder=lmm.family.placeholder)}"
    found = lmm.generate(pictures["small"], text, max_new_tokens=2)
    if len(asked_rows(lmm, found)) == 0:
        assert found.prompt_attention is None
    else:  # a family whose image ends in a token of its own
        assert found.prompt_attention.shape == found.attention.shape[1:]


def test_batch_equals_one_by_one_in_eager_and_by_itself(lmm, pictures):
    """Eager in float64 cannot take padding (its mask's float64 minimum overflows the float32 softmax to NaN)."""
    images = [pictures["landscape"], pictures["portrait"], pictures["small"]]
    texts = [rendered(lmm), rendered(lmm, "What?"), rendered(lmm, "Is there a red umbrella next to the cup?")]
    together = lmm.generate(images, texts, max_new_tokens=NEW, per_head=True)
    for image, text, found in zip(images, texts, together, strict=True):
        ((ids, weights),) = eager_generate(lmm, [image], [text])
        t = len(found.token_ids)
        assert torch.equal(found.token_ids, ids[:t])
        close(found.attention_per_head, weights[:t])
        alone = lmm.generate(image, text, max_new_tokens=NEW)
        assert torch.equal(found.token_ids, alone.token_ids)
        assert torch.equal(found.prompt_ids, alone.prompt_ids)
        close(found.attention, alone.attention)


def test_batch_replay_equals_one_by_one(lmm, pictures):
    images = [pictures["small"], pictures["portrait"], pictures["landscape"]]
    prompts = ["What?", PROMPT, "What is in this picture? " * 4]
    answers = ["A cat.", "", "The umbrella is on the left side of the image, next to a blue star. " * 3]
    together = lmm.replay(images, prompts, answers, per_head=True)
    for image, prompt, answer, found in zip(images, prompts, answers, together, strict=True):
        alone = lmm.replay(image, prompt, answer, per_head=True)
        assert found.text == alone.text == answer
        assert torch.equal(found.prompt_ids, alone.prompt_ids)
        assert not found.attention.isnan().any()
        close(found.attention_per_head, alone.attention_per_head)


def test_rows_sum_to_at_most_one_and_see_the_image(lmm, pictures):
    found = lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=NEW, per_head=True)
    assert (found.attention_per_head.sum(-1) <= 1 + 1e-6).all()
    assert (found.attention >= 0).all()
    assert (found.attention.sum(-1) > 0).all()
    assert found.attention.sum(-1).mean() > 0.01
    close(found.attention, found.attention_per_head[:, :, torch.randperm(4)].mean((1, 2)))


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mistral", "sliding_window": 30},
        {"model_type": "mistral", "sliding_window": 12, "num_key_value_heads": 2},
        {"model_type": "gemma2", "sliding_window": 25, "attn_logit_softcapping": 2.0, "head_dim": 8},
    ],
    ids=["window", "window-gqa", "softcap"],
)
def test_sliding_windows_and_softcaps(tmp_path, pictures, text):
    lmm = load_lmm(tiny_llava(tmp_path, text=text), device="cpu")
    if "attn_logit_softcapping" in text:  # transformers 5.17 runs SDPA here, which leaves the softcap out
        lmm.model.set_attn_implementation({"text_config": "eager"})
    prompt = "What? <image> A cup."
    options = {"max_new_tokens": NEW, "suppress_tokens": [2, lmm.family.image_token_id]}  # no end, no image
    found = lmm.generate(pictures["landscape"], prompt, per_head=True, **options)
    weights = eager_forward(lmm, pictures["landscape"], prompt, found.token_ids)
    weights = weights[len(found.prompt_ids) - 1 :][: len(found.token_ids)]
    assert (weights == 0).any()  # something did leave the window
    close(found.attention_per_head, weights)
    close(lmm.replay(pictures["landscape"], prompt, found.token_ids).attention, weights.mean((1, 2)))
    both = lmm.generate([pictures["landscape"]] * 2, [prompt, "<image>"], **options)
    close(both[0].attention, weights.mean((1, 2)))


def test_a_model_loaded_as_eager_stays_eager(lmms, pictures):
    lmm = LMM(eager(lmms["llava"]), lmms["llava"].processor)
    found = lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=8)
    assert lmm.model.config.text_config._attn_implementation == "eager"
    assert found.model["attention"] == "eager"
    close(found.attention, lmms["llava"].generate(pictures["landscape"], PROMPT, max_new_tokens=8).attention)


def fast_calls(monkeypatch, run) -> list:
    """Shapes, mask and flags of every call of the fast attention while `run` runs."""
    calls, original = [], F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        calls.append((query.shape, key.shape, value.shape, None if attn_mask is None else attn_mask.clone(), options))
        return original(query, key, value, attn_mask=attn_mask, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        run()
    return calls


@pytest.mark.parametrize("count", [1, 2])
def test_the_fast_attention_gets_exactly_the_plain_arguments(lmm, pictures, monkeypatch, count):
    images, texts = [pictures["landscape"], pictures["small"]][:count], [rendered(lmm), rendered(lmm, "What?")][:count]
    inputs = lmm.processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
    plain = fast_calls(monkeypatch, lambda: lmm.model.generate(**inputs, max_new_tokens=6, do_sample=False))
    captured = fast_calls(monkeypatch, lambda: lmm.generate(images, texts, max_new_tokens=6))
    assert len(plain) == len(captured) > 0
    for a, b in zip(plain, captured, strict=True):
        assert a[:3] == b[:3]
        assert a[4] == b[4]
        assert (a[3] is None) == (b[3] is None)
        assert a[3] is None or torch.equal(a[3], b[3])


def test_never_a_square_of_the_sequence(lmm, pictures, monkeypatch):
    sizes, original = [], capture._attend

    def spy(rows, state, allowed):
        weights = original(rows, state, allowed)
        sizes.append(weights.shape)
        return weights

    monkeypatch.setattr(capture, "_attend", spy)
    answer = "The umbrella is on the left side of the image. " * 8
    found = lmm.replay(pictures["landscape"], PROMPT, answer, end_of_sequence=False)
    assert sum(shape[2] for shape in sizes) == 2 * (len(found.token_ids) + len(asked_rows(lmm, found)))
    assert max(shape[2] for shape in sizes) <= capture.ROWS_AT_ONCE
    monkeypatch.setattr(capture, "SCORES_AT_ONCE", 1)
    sizes.clear()
    lmm.replay(pictures["landscape"], PROMPT, answer)
    assert {shape[2] for shape in sizes} == {1}


def traces(lmm: LMM) -> tuple:
    """Everything global or on the model that a capture could leave behind."""
    config = lmm.model.config
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lmm.model.modules())
    return (
        set(transformers.AttentionInterface._global_mapping),
        set(AttentionMaskInterface._global_mapping),
        [
            config._attn_implementation,
            config.text_config._attn_implementation,
            config.vision_config._attn_implementation,
        ],
        hooks,
        lmm.model.training,
    )


class Interrupted(Exception):
    pass


def interrupt(*_, **__):
    raise Interrupted


def test_nothing_leaks_after_success_or_exception(lmm, pictures, monkeypatch):
    text = rendered(lmm)
    inputs = lmm.processor(images=[pictures["landscape"]], text=[text], return_tensors="pt")
    plain = lmm.model.generate(**inputs, max_new_tokens=10, do_sample=False)
    before = traces(lmm)
    found = lmm.generate(pictures["landscape"], text, max_new_tokens=10)
    assert traces(lmm) == before
    assert torch.equal(found.token_ids, plain[0, len(found.prompt_ids) :][: len(found.token_ids)])
    with pytest.raises(Interrupted):
        lmm.generate(pictures["landscape"], text, max_new_tokens=10, stopping_criteria=[interrupt])
    assert traces(lmm) == before
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(capture.RowRecorder, "observe", interrupt)
        lmm.replay(pictures["landscape"], text, "A cat.")
    assert traces(lmm) == before
    assert torch.equal(lmm.model.generate(**inputs, max_new_tokens=10, do_sample=False), plain)


def in_threads(*jobs) -> list:
    results: list = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def work(number, job):
        barrier.wait()
        results[number] = [job() for _ in range(4)]

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("names", [("llava", "qwen2_5_vl"), ("llava", "llava")], ids=["two models", "one model"])
def test_two_threads(lmms, pictures, names):
    def job(name, shape):
        return lambda: lmms[name].generate(pictures[shape], PROMPT, max_new_tokens=20, per_head=True)

    jobs = [job(names[0], "landscape"), job(names[1], "portrait")]
    before = [traces(lmms[name]) for name in names]
    for expected, found in zip([job() for job in jobs], in_threads(*jobs), strict=True):
        for one in found:
            assert torch.equal(one.token_ids, expected.token_ids)
            close(one.attention_per_head, expected.attention_per_head)
    assert [traces(lmms[name]) for name in names] == before


def test_a_foreign_forward_in_another_thread_is_not_recorded(lmms, pictures, monkeypatch):
    lmm = lmms["llava"]
    expected = lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=6)
    inputs = lmm.processor(images=[pictures["small"]], text=["<image> What?"], return_tensors="pt")

    def meddle(*_, **__):
        thread = threading.Thread(target=lambda: lmm.model(**inputs))
        thread.start()
        thread.join()
        return torch.zeros(1, dtype=torch.bool)

    found = lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=6, stopping_criteria=[meddle])
    close(found.attention, expected.attention)


def test_a_text_model_out_of_reach_is_refused(lmms):
    lmm = lmms["llava"]
    recorder = capture.RowRecorder(columns=(torch.arange(3),), mask=torch.ones(1, 5).bool(), first=4, layers=2)
    foreign = lmms["qwen2_5_vl"].family.text_model
    before = traces(lmm)
    with (
        pytest.raises(GroundingError, match="keeps the attention 'sdpa'"),
        capture.recording(lmm.model, foreign, recorder),
    ):
        pass
    assert traces(lmm) == before


def test_layers_that_disagree_are_an_error():
    recorder = capture.RowRecorder(columns=(torch.arange(3),), mask=torch.ones(1, 5).bool(), first=4, layers=2)
    recorder.observe(0, torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), scaling=0.5, softcap=None, window=None)
    with pytest.raises(GroundingError, match=r"2 decoder layers showed \[0, 1\] attention rows"):
        recorder.finish()
