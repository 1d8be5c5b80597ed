"""Generating and replaying: ids, prompts, spans, options, provenance, and errors that say what to do."""

import json
from importlib.util import find_spec

import pytest
import torch
from tiny_models import llama_tokenizer, qwen_tokenizer, tiny_llava
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from core.errors import GroundingError
from core.lmm import LMM, load_lmm
from core.phrases import phrase_at
from core.prompts import TEMPLATES, render_prompt
from core.spans import decode_with_spans

PROMPT = "Describe the image in detail."


def placeholder_prompt(lmm: LMM, text: str = PROMPT) -> str:
    return f"{lmm.family.image_block.format(placeholder=lmm.family.placeholder)}{text}"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# What comes back


def test_shapes_types_and_provenance(lmm, pictures):
    found = lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=9, per_head=True)
    t, k = found.attention.shape
    assert found.token_ids.dtype == found.prompt_ids.dtype == found.token_spans.dtype == torch.int64
    assert found.attention.dtype == found.attention_per_head.dtype == torch.float32
    assert found.token_ids.shape == (t,)
    assert found.attention_per_head.shape == (t, 2, 4, k)
    assert k == (found.prompt_ids == lmm.model.config.image_token_id).sum()
    assert found.image_size == (90, 140)
    assert found.model["name_or_path"] == lmm.name
    assert found.model["family"] == lmm.model.config.model_type
    assert found.model["row"] == "predicting"
    assert found.model["generation"]["max_new_tokens"] == 9
    assert json.loads(json.dumps(found.model)) == found.model
    assert found.text == lmm.processor.tokenizer.decode(found.token_ids, skip_special_tokens=True)


def test_generate_is_plain_greedy_generate(lmm, pictures):
    text = placeholder_prompt(lmm)
    inputs = lmm.processor(images=[pictures["portrait"]], text=[text], return_tensors="pt")
    plain = lmm.model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    found = lmm.generate(pictures["portrait"], placeholder_prompt(lmm), max_new_tokens=20)
    assert torch.equal(found.prompt_ids, inputs["input_ids"][0])
    assert torch.equal(found.token_ids, plain)


def test_the_answer_ends_with_its_end_of_sequence_token(lmm, pictures):
    images, prompts = [pictures["landscape"], pictures["portrait"]], [PROMPT, "What?"]
    free = lmm.generate(images, prompts, max_new_tokens=12)
    stop = int(free[0].token_ids[4])
    ended = lmm.generate(images, prompts, max_new_tokens=12, eos_token_id=stop)
    for full, cut in zip(free, ended, strict=True):
        stops = (full.token_ids == stop).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(full.token_ids)
        assert torch.equal(cut.token_ids, full.token_ids[:length])
        close(cut.attention, full.attention[:length])
    assert ended[0].token_ids[-1] == stop


def test_self_rows_are_predicting_rows_one_later(lmm, pictures):
    answer = "The cat is next to a cup."
    predicting = lmm.replay(pictures["landscape"], PROMPT, answer, per_head=True)
    own = lmm.replay(pictures["landscape"], PROMPT, answer, per_head=True, row="self")
    close(own.attention_per_head[:-1], predicting.attention_per_head[1:])
    assert (own.attention[-1] - predicting.attention[-1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"row": "self"},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_other_ways_to_generate_are_replayed(lmm, pictures, options):
    images = [pictures["landscape"], pictures["portrait"]]
    images = images[:1] if "prompt_lookup_num_tokens" in options else images
    given = {"max_new_tokens": 8, "suppress_tokens": [lmm.family.image_token_id]}
    for image, found in zip(images, lmm.generate(images, PROMPT, **given, **options), strict=True):
        row = options.get("row", "predicting")
        again = lmm.replay(image, PROMPT, found.token_ids, row=row)
        assert found.model["row"] == row
        close(found.attention, again.attention)
        if "num_beams" not in options:
            assert torch.equal(found.token_ids, lmm.generate(image, PROMPT, **given).token_ids)


def test_several_sequences_per_prompt(lmm, pictures):
    images = [pictures["landscape"], pictures["small"]]
    options = {"max_new_tokens": 6, "num_beams": 3, "suppress_tokens": [lmm.family.image_token_id]}
    groups = lmm.generate(images, PROMPT, num_return_sequences=2, **options)
    best = lmm.generate(images, PROMPT, **options)
    assert [len(group) for group in groups] == [2, 2]
    for group, first, image in zip(groups, best, images, strict=True):
        assert torch.equal(group[0].token_ids, first.token_ids)
        for one in group:
            close(one.attention, lmm.replay(image, PROMPT, one.token_ids).attention)
    alone = lmm.generate(images[0], PROMPT, num_return_sequences=2, **options)
    assert [one.text for one in alone] == [one.text for one in groups[0]]


def test_sampling_is_recorded_as_it_runs(lmm, pictures):
    options = {"do_sample": True, "max_new_tokens": 10, "suppress_tokens": [lmm.family.image_token_id]}
    torch.manual_seed(5)
    found = lmm.generate(pictures["landscape"], PROMPT, **options)
    torch.manual_seed(5)
    assert torch.equal(found.token_ids, lmm.generate(pictures["landscape"], PROMPT, **options).token_ids)
    close(found.attention, lmm.replay(pictures["landscape"], PROMPT, found.token_ids).attention)
    assert not torch.equal(found.token_ids, lmm.generate(pictures["landscape"], PROMPT, max_new_tokens=10).token_ids)


def test_replayed_answers_may_be_text_or_ids(lmm, pictures):
    text = "A red cup, a café and 日本 🎉."
    ids = lmm.processor.tokenizer(text, add_special_tokens=False).input_ids
    by_text = lmm.replay(pictures["landscape"], PROMPT, text, end_of_sequence=False)
    assert by_text.text == text
    for answer in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy()):
        for closed in (True, False):
            by_ids = lmm.replay(pictures["landscape"], PROMPT, answer, end_of_sequence=closed)
            assert torch.equal(by_ids.token_ids, by_text.token_ids)
            close(by_ids.attention, by_text.attention)


def saying(lmm: LMM, image, text: str, *, max_new_tokens: int = 60):
    """What `generate` keeps of an answer whose every token is forced upon it, to the end that it stops at."""
    script = [*lmm.processor.tokenizer(text, add_special_tokens=False).input_ids, END[lmm.model.config.model_type]]
    script = [lmm.processor.tokenizer.convert_tokens_to_ids(i) if isinstance(i, str) else i for i in script]
    start = len(lmm.replay(image, PROMPT, []).prompt_ids)
    return lmm.generate(
        image,
        PROMPT,
        max_new_tokens=max_new_tokens,
        prefix_allowed_tokens_fn=lambda _, ids: [script[len(ids) - start]],
    )


END = {"llava": "</s>", "llava_next": "</s>", "qwen2_5_vl": "<|im_end|>"}


def test_a_text_is_replayed_as_it_would_have_been_generated(lmm, pictures):
    image, text = pictures["landscape"], "The cat is next to a red cup, a café and 日本."
    generated = saying(lmm, image, text)
    assert generated.text == text
    assert lmm.processor.tokenizer.convert_ids_to_tokens(int(generated.token_ids[-1])) == END[generated.model["family"]]
    replayed = lmm.replay(image, PROMPT, generated.text)
    assert torch.equal(replayed.token_ids, generated.token_ids)
    assert torch.equal(replayed.token_spans, generated.token_spans)
    close(replayed.attention, generated.attention)
    bare = lmm.replay(image, PROMPT, generated.text, end_of_sequence=False)
    assert torch.equal(bare.token_ids, generated.token_ids[:-1])
    assert (replayed.model["end_of_sequence"], bare.model["end_of_sequence"]) == (True, False)


def test_a_cut_answer_has_no_end_of_sequence_and_is_replayed_without(lmm, pictures):
    image = pictures["portrait"]
    cut = saying(lmm, image, "The cat is next to a red cup of coffee.", max_new_tokens=5)
    assert len(cut.token_ids) == 5
    again = lmm.replay(image, PROMPT, cut.text, end_of_sequence=False)
    assert torch.equal(again.token_ids, cut.token_ids)
    close(again.attention, cut.attention)
    close(lmm.replay(image, PROMPT, cut.token_ids).attention, cut.attention)


def test_a_text_that_ends_itself_is_not_ended_twice(lmm, pictures):
    text = "A cat."
    once = lmm.replay(pictures["small"], PROMPT, text)
    written = lmm.replay(pictures["small"], PROMPT, text + END[lmm.model.config.model_type])
    assert torch.equal(once.token_ids, written.token_ids)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_ends_the_one_that_closes_a_turn_is_taken(lmms, pictures, order, monkeypatch):
    lmm = lmms["qwen2_5_vl"]
    tokenizer = lmm.processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])  # as Qwen2.5-VL's and Gemma 3's lists
    assert tokenizer.eos_token_id == ends[0]  # as Gemma's tokenizer, whose turns end in another token, too
    monkeypatch.setattr(lmm.model.generation_config, "eos_token_id", ends[::order])
    assert lmm.replay(pictures["small"], PROMPT, "A cat.").token_ids[-1] == ends[1]
    monkeypatch.setattr(lmm.model.generation_config, "eos_token_id", None)  # what never stops has no end
    assert lmm.replay(pictures["small"], PROMPT, "A cat.").text == "A cat."
    bare = lmm.replay(pictures["small"], PROMPT, "A cat.", end_of_sequence=False)
    assert torch.equal(lmm.replay(pictures["small"], PROMPT, "A cat.").token_ids, bare.token_ids)


def test_an_empty_answer_is_an_end_or_nothing(lmm, pictures):
    ended = lmm.replay(pictures["landscape"], PROMPT, "")
    generated = saying(lmm, pictures["landscape"], "")
    assert (ended.text, ended.token_spans.tolist()) == ("", [[0, 0]])
    assert torch.equal(ended.token_ids, generated.token_ids)
    close(ended.attention, generated.attention)
    for answer, closed in (("", False), ([], True), ([], False)):
        found = lmm.replay(pictures["landscape"], PROMPT, answer, per_head=True, end_of_sequence=closed)
        k = int((found.prompt_ids == lmm.family.image_token_id).sum())
        assert found.text == ""
        assert found.attention.shape == (0, k)
        assert found.attention_per_head.shape == (0, 2, 4, k)
        assert found.token_spans.shape == (0, 2)
        options = {"row": "self", "end_of_sequence": closed}
        assert lmm.replay(pictures["landscape"], PROMPT, answer, **options).attention_per_head is None


def test_one_image_with_many_prompts_and_the_other_way_round(lmm, pictures):
    prompts = [PROMPT, "What is in this picture?"]
    several = lmm.generate(pictures["small"], prompts, max_new_tokens=3)
    assert len(several) == 2
    assert not torch.equal(several[0].prompt_ids, several[1].prompt_ids)
    assert [g.image_size for g in lmm.generate([pictures["small"]], PROMPT, max_new_tokens=3)] == [(40, 61)]


# Prompts


def decoded(lmm: LMM, generation) -> str:
    text = lmm.processor.tokenizer.decode(generation.prompt_ids).replace("<s> ", "<s>")
    while lmm.family.placeholder * 2 in text:
        text = text.replace(lmm.family.placeholder * 2, lmm.family.placeholder)
    return text.replace("<image> ", "<image>")  # Llama's tokenizer begins a text of its own behind the picture


def test_chat_template_and_system_prompt(lmms, pictures):
    def prompt_of(name, **options):
        return decoded(lmms[name], lmms[name].replay(pictures["small"], PROMPT, "", **options))

    assert prompt_of("llava") == f"<s>USER: <image>\n{PROMPT} ASSISTANT:"
    assert prompt_of("llava", system="Be kind.") == f"<s>SYSTEM: Be kind. USER: <image>\n{PROMPT} ASSISTANT:"
    turn = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of("qwen2_5_vl") == turn
    assert prompt_of("qwen2_5_vl", system="Be kind.") == f"<|im_start|>system\nBe kind.<|im_end|>\n{turn}"


def test_placeholder_prompts_are_verbatim(lmm, pictures):
    text = f"Look: {placeholder_prompt(lmm)} {{prompt}}"
    start = "<s>" if lmm.processor.tokenizer.bos_token else ""
    assert decoded(lmm, lmm.replay(pictures["small"], text, "")) == start + text
    assert decoded(lmm, lmm.replay(pictures["small"], start + text, "", template="plain")) == start + text
    with pytest.raises(GroundingError, match="used verbatim; write the system prompt into it"):
        lmm.replay(pictures["small"], text, "", system="Be kind.")
    with pytest.raises(GroundingError, match=r"2 image placeholders.*for 1 image"):
        lmm.replay(pictures["small"], text + lmm.family.placeholder, "")


def test_named_and_free_templates(lmms, checkpoints, pictures):
    lmm = lmms["llava"]
    text = render_prompt("Is {image} here?", lmm.family, template="llava_v1")
    assert text.startswith("A chat between a curious human and an artificial intelligence assistant. The assistant")
    assert text.endswith("questions. USER: <image>\nIs {image} here? ASSISTANT:")
    assert "curious user" in render_prompt("Hi", lmm.family, template="vicuna_v1")
    assert render_prompt("Hi", lmm.family, template="plain") == "<image>Hi"
    assert render_prompt("Hi", lmm.family, template="llava_v1", system="S.") == "S. USER: <image>\nHi ASSISTANT:"
    assert render_prompt("Hi", lmms["qwen2_5_vl"].family, template="{prompt}|{image}") == (
        "Hi|<|vision_start|><|image_pad|><|vision_end|>"
    )
    loaded = load_lmm(checkpoints["llava"], device="cpu", template="plain")
    assert decoded(loaded, loaded.replay(pictures["small"], "Hi", "")) == "<s><image>Hi"
    assert decoded(loaded, loaded.replay(pictures["small"], "Hi", "", template="{image}:{prompt}")) == "<s><image>:Hi"
    with pytest.raises(GroundingError, match=f"neither one of {', '.join(TEMPLATES)} nor a text with"):
        render_prompt("Hi", lmm.family, template="lava_v1")
    with pytest.raises(GroundingError, match="takes no system prompt"):
        render_prompt("Hi", lmm.family, template="plain", system="S.")
    with pytest.raises(GroundingError, match=r"add \{system\} to it"):
        render_prompt("Hi", lmm.family, template="{image}{prompt}", system="S.")
    with pytest.raises(GroundingError, match="give system="):
        render_prompt("Hi", lmm.family, template="{system}{image}{prompt}")


def test_no_chat_template(tmp_path, pictures):
    lmm = load_lmm(tiny_llava(tmp_path), device="cpu")
    lmm.processor.chat_template = lmm.processor.tokenizer.chat_template = None
    with pytest.raises(GroundingError, match="no chat template; pass template="):
        lmm.generate(pictures["small"], PROMPT, max_new_tokens=2)
    assert len(lmm.generate(pictures["small"], "<image>" + PROMPT, max_new_tokens=2).token_ids) == 2
    lmm.processor.chat_template = "{{ raise_exception('only text') }}"
    with pytest.raises(GroundingError, match=r"refuses this conversation \(only text\)"):
        lmm.generate(pictures["small"], PROMPT, max_new_tokens=2)
    lmm.processor.chat_template = "{{ messages[0]['role'] }}"
    with pytest.raises(GroundingError, match="0 times instead of 1"):
        lmm.generate(pictures["small"], PROMPT, max_new_tokens=2)


# Spans

TEXTS = [
    "The image features a red umbrella.",
    " leading and  double  spaces\n\nlines\t",
    "Café naïve — “quotes” 日本語, 👩‍👩‍👧 🎉🎉!",
    "",
]


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), qwen_tokenizer()], ids=["sentencepiece", "byte-level"])
@pytest.mark.parametrize("text", TEXTS)
def test_spans_cover_the_text_in_order(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    decoded, spans = decode_with_spans(tokenizer, ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.strip() == text.strip()
    covered = set()
    for token, (start, end) in zip(ids, spans.tolist(), strict=True):
        covered |= set(range(start, end))
        alone = tokenizer.decode([token])
        assert 0 <= start <= end <= len(decoded)
        assert end > start or alone.strip() == ""
        assert "\ufffd" in alone or alone.strip() == decoded[start:end].strip()
    assert covered == set(range(len(decoded)))
    assert spans[:, 0].tolist() == sorted(spans[:, 0].tolist())


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), qwen_tokenizer()], ids=["sentencepiece", "byte-level"])
def test_pieces_of_one_character_share_it(tokenizer):
    ids = tokenizer("a 🎉 é", add_special_tokens=False).input_ids
    text, spans = decode_with_spans(tokenizer, ids)
    words = [text[start:end] for start, end in spans.tolist()]
    assert words.count("🎉") == 4
    assert words.count("é") == 2


def spelt(tokenizer, ids: list[int]) -> list[tuple[int, int]]:
    """Spans from the bytes that each sentencepiece token stands for, counted in the text's UTF-8."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    written = [
        bytes.fromhex(piece[3:5]) if piece.startswith("<0x") else piece.replace("▁", " ").encode() for piece in pieces
    ]
    written[0] = written[0].removeprefix(b" ")  # the space in front of every text
    owner = [number for number, character in enumerate(b"".join(written).decode()) for _ in character.encode()]
    spans, start = [], 0
    for part in written:
        chars = owner[start : start + len(part)]
        spans.append((chars[0], chars[-1] + 1) if chars else (0, 0))
        start += len(part)
    return spans


@pytest.mark.parametrize("word", ["🎉", "👩‍👩‍👧", "❤️", "🇫🇷", "猫", "龘🍕", "café", "jalapeño", "ạ̈", "cup"])
@pytest.mark.parametrize("shape", ["a {} cup", "{}cup", "{} {}cup, the {}{} cat", 'the "{}" is {}.', "{}"])
def test_a_token_belongs_to_the_characters_that_its_bytes_spell(word, shape):
    tokenizer, text = llama_tokenizer(), shape.replace("{}", word)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    decoded, spans = decode_with_spans(tokenizer, ids)
    assert decoded == text
    assert list(map(tuple, spans.tolist())) == spelt(tokenizer, ids)


def test_the_bytes_of_an_emoji_are_not_the_next_words():
    """The released code measures prefixes by decoding them: four bytes of one emoji make it 1, 2, 3 and again 1
    characters longer, so the second and third are counted to whatever stands one and two characters behind."""
    tokenizer, text = llama_tokenizer(), "a 🎉 cup"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = tokenizer.convert_ids_to_tokens(ids)
    first = pieces.index("<0xF0>")
    lengths = [len(tokenizer.decode(ids[: end + 1])) for end in range(len(ids))]
    start = lengths[first - 1]
    assert [length - start for length in lengths[first : first + 4]] == [1, 2, 3, 1]
    cup = text.index("cup")
    assert lengths[first + 1] <= cup < lengths[first + 2]  # so the third byte is one of the cup's, there
    _, spans = decode_with_spans(tokenizer, ids)
    assert [token for token, (_, end) in enumerate(spans.tolist()) if end > cup] == [
        token for token in range(first + 4, len(ids)) if pieces[token] != "▁"
    ]
    assert phrase_at(text, spans, (start, start + 1)).tokens == tuple(range(first, first + 4))


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), qwen_tokenizer()], ids=["sentencepiece", "byte-level"])
def test_special_tokens_get_empty_spans(tokenizer):
    ids = tokenizer("a red cup", add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    plain_text, plain = decode_with_spans(tokenizer, ids)
    text, spans = decode_with_spans(tokenizer, [end, *ids[:2], end, *ids[2:], end])
    assert text == plain_text
    assert spans[0].tolist() == [0, 0]
    assert spans[3].tolist() == [int(plain[1, 1])] * 2
    assert spans[-1].tolist() == [len(text)] * 2
    assert torch.equal(spans[[1, 2, *range(4, len(spans) - 1)]], plain)


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), qwen_tokenizer()], ids=["sentencepiece", "byte-level"])
def test_spans_of_any_ids_stay_inside_the_text(tokenizer):
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ids = torch.randint(0, len(tokenizer), (40,), generator=generator).tolist()
        text, spans = decode_with_spans(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert (spans >= 0).all()
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (spans <= len(text)).all()
        assert set(range(len(text))) == {c for start, end in spans.tolist() for c in range(start, end)}


def test_a_character_cut_off_at_the_end():
    tokenizer = qwen_tokenizer()
    ids = tokenizer("cup 🎉", add_special_tokens=False).input_ids[:-1]
    text, spans = decode_with_spans(tokenizer, ids)
    assert text.startswith("cup ")
    assert spans[-1, 1] == len(text)
    assert spans[-1, 0] == 4


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"row": "next"}, "unknown row 'next'; use one of predicting, self"),
        ({"output_attentions": True}, "does not take output_attentions.*per_head=True"),
        ({"past_key_values": None}, "does not take past_key_values"),
    ],
)
def test_options_that_are_refused(lmms, pictures, options, message):
    with pytest.raises(GroundingError, match=message):
        lmms["llava"].generate(pictures["small"], PROMPT, **options)


def test_answers_that_are_refused(lmm, pictures):
    image, size = pictures["small"], lmm.model.get_input_embeddings().num_embeddings
    with pytest.raises(GroundingError, match=r"holds the image token.*take it out"):
        lmm.replay(image, PROMPT, [3, lmm.family.image_token_id])
    with pytest.raises(GroundingError, match="holds the image token"):
        lmm.replay(image, PROMPT, f"a {lmm.family.placeholder} b")
    with pytest.raises(GroundingError, match=f"ids \\[{size}, -1\\], outside the vocabulary of {size}"):
        lmm.replay(image, PROMPT, [size, 3, -1])
    with pytest.raises(GroundingError, match="a text or a sequence of int64 ids"):
        lmm.replay(image, PROMPT, torch.tensor([[1.5]]))
    with pytest.raises(GroundingError, match="one answer for each of the 2 images"):
        lmm.replay([image, image], PROMPT, "A cat.")


def test_batches_that_do_not_match(lmms, pictures):
    lmm = lmms["llava"]
    with pytest.raises(GroundingError, match="2 images and 3 prompts"):
        lmm.generate([pictures["small"]] * 2, [PROMPT] * 3)
    with pytest.raises(GroundingError, match="a prompt is a text, got int"):
        lmm.generate([pictures["small"]] * 2, [PROMPT, 3])
    with pytest.raises(GroundingError, match="no images"):
        lmm.generate([], PROMPT)


@pytest.mark.parametrize("name", ["embedded", "embedded/llava"])
def test_the_embedded_model_goes_by_name(checkpoints, monkeypatch, name):
    monkeypatch.setattr("core.weights.weights_path", lambda kind: checkpoints[kind])
    assert load_lmm(name, device="cpu").name == name


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(GroundingError, match=r"none' does not exist; give a directory, a hub id or one of embedded,"):
        load_lmm(tmp_path / "none")
    with pytest.raises(GroundingError, match=r"has no config\.json"):
        load_lmm(tmp_path)
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(GroundingError, match="is a file; give the directory"):
        load_lmm(tmp_path / "file.bin")
    with pytest.raises(
        GroundingError, match=r"no model could be loaded from 'nobody/nothing'.*hub id that this machine"
    ):
        load_lmm("nobody/nothing")


def test_loading_half_a_checkpoint(tmp_path):
    path = tiny_llava(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(GroundingError, match="no model could be loaded"):
        load_lmm(path)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("instructblip", "latent queries of a Q-Former, so there is no spatial grid"),
        ("blip-2", "latent queries of a Q-Former"),
        ("idefics2", "latents of a perceiver resampler"),
        ("kosmos-2", "no spatial grid to map back"),
        ("bert", "no adapter for models of type 'bert'; supported are llava, .*qwen2_5_vl.*one subclass"),
    ],
)
def test_families_without_a_grid_are_refused(tmp_path, model_type, message):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(GroundingError, match=message):
        load_lmm(tmp_path)


def test_processors_that_are_no_processors(checkpoints, lmms):
    with pytest.raises(GroundingError, match="not a multimodal processor; give one with a tokenizer and an image"):
        LMM(lmms["llava"].model, lmms["llava"].processor.tokenizer)
    with pytest.raises(GroundingError, match="unknown geometry 'crop'; use one of processor, pad"):
        load_lmm(checkpoints["llava"], geometry="crop")


def test_dtype_and_device(checkpoints, pictures, tmp_path):
    assert load_lmm(checkpoints["llava"], device="cpu").model.dtype == torch.float32
    half = load_lmm(checkpoints["llava"], device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    found = half.generate(pictures["small"], PROMPT, max_new_tokens=4)
    assert found.attention.dtype == torch.float32
    assert found.model["dtype"] == "bfloat16"
    half.model.save_pretrained(tmp_path)
    half.processor.save_pretrained(tmp_path)
    assert load_lmm(tmp_path, device="cpu").model.dtype == torch.float32


def test_a_model_in_hand(checkpoints, pictures):
    model = AutoModelForImageTextToText.from_pretrained(checkpoints["llava"])
    lmm = LMM(model, AutoProcessor.from_pretrained(checkpoints["llava"]))
    assert lmm.generate(pictures["small"], PROMPT, max_new_tokens=2).model["name_or_path"] == str(checkpoints["llava"])


# ---- loading


@pytest.mark.parametrize(
    "loading", [{"device_map": "auto"}, {"device_map": {"": "cpu"}}, {"attn_implementation": "eager"}]
)
def test_loading_options_change_neither_answer_nor_maps(lmms, checkpoints, pictures, loading):
    usual = lmms["llava"].generate(pictures["portrait"], "What is it?", max_new_tokens=6)
    found = load_lmm(checkpoints["llava"], **({"device": "cpu"} if "device_map" not in loading else {}), **loading)
    answer = found.generate(pictures["portrait"], "What is it?", max_new_tokens=6)
    assert answer.token_ids.tolist() == usual.token_ids.tolist()
    torch.testing.assert_close(answer.attention, usual.attention, atol=1e-5, rtol=0)
    assert found.model.config.text_config._attn_implementation == loading.get("attn_implementation", "sdpa")


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device 'cpu' and device_map 'auto' were given; give one of them"),
        ({"quantization": "5bit"}, "quantization '5bit' is not known; use one of 4bit, 8bit, or the fields of"),
        ({"quantization": {"quant_method": "mine"}}, "no model could be loaded from .*mine"),
        ({"attn_implementation": "mine"}, "no model could be loaded from .*mine"),
    ],
)
def test_loading_options_that_cannot_be_had_are_refused(checkpoints, loading, message):
    with pytest.raises(GroundingError, match=message):
        load_lmm(checkpoints["llava"], **loading)


def test_quantisation_works_or_says_what_to_install(checkpoints, pictures):
    """bitsandbytes is no dependency; where it is installed, captured generation runs on its layers, too."""
    if find_spec("bitsandbytes") is None:
        with pytest.raises(GroundingError, match=r"cannot be loaded so here: .*bitsandbytes"):
            load_lmm(checkpoints["llava"], quantization="8bit")
    else:
        lmm = load_lmm(checkpoints["llava"], quantization="8bit")
        answer = lmm.generate(pictures["portrait"], "What is it?", max_new_tokens=4)
        assert 0 < float(answer.attention.sum(1).max()) <= 1
