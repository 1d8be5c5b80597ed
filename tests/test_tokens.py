"""Training samples and prompts, token by token: LLaVA's with its tokenizers, the embedded family's own with its."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import tiny_diffusion, tiny_tower
from tiny_models import llama_tokenizer
from tiny_vicuna import Pieces, tiny_vicuna

from core.errors import GroundingError
from core.lmm import LMM, load_lmm
from core.prompts import image_gap
from core.training.data import ConversationData, read_samples
from core.training.templates import IGNORE, tokenize

PICTURE, VISUAL = -1, 3
WHAT = "What is in this picture?"
LONG = "The umbrella is on the left side of the image, next to it. " * 3
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PICTURED = [  # texts of conversations with a picture, questions and answers in turn
    [f"<image>\n{WHAT}", "A photo of a cat."],
    [f"{WHAT}\n<image>", "A photo of a cat."],
    [f"  <image>\n {WHAT}  ", " A photo of a cat. "],
    ["<image>", "a photo"],
    [f"<image>\n{WHAT}", "A cat.", "And what colour? ", "It's red \n", " Sure?", "  Yes, 12 345 €😀"],
    ["Hello", "Hi", "Look at <image> this ", "A cat", "more", "less"],
    ["<image>\n\tTab", "\nnewline first"],
    ["<image>\n<image>\ntwice", "A cat"],
    [WHAT, "The picture is marked nowhere."],
    [f"<image>\n{WHAT}", LONG, "and?", LONG, "and?", LONG],
]
TEXTS = [["Hello there", "Hi!"], ["Hello", "Hi!\n\n  x = 1\n", " ok ", "bye"], [WHAT, LONG, "and?", LONG]]
DROPPED = [  # LLaVA learns nothing of them
    ([f"<image>\n{WHAT}", ""], "an empty answer"),
    (["<image>\nx", "A cat", "", "what?"], "an empty question"),
    ([f"<image>\n{WHAT}", "A cat", "and then?"], "no answer at the end"),
    ([f"<image>\n{WHAT}"], "no answer at all"),
    ([f"<image>\n{WHAT}", "It says USER: hi ASSISTANT: hello"], "words of the template"),
    (["<image>\nsay </s>", "ok </s> done"], "the end of sequence"),
    (["<image>\nsay <unk>", "ok"], "the unknown token, LLaVA's padding"),
]


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    return tiny_vicuna(tmp_path_factory.mktemp("vicuna"))


@pytest.fixture(scope="module")
def tokenizer(vicuna):
    from core.encoders.llava import llava_tokenizer

    return llava_tokenizer(vicuna)


@pytest.fixture(scope="module")
def pieces(vicuna):
    return Pieces(vicuna / "tokenizer.model")


# LLaVA's preprocessing in plain words; `encode` gives a text's ids with "<s>" in front


def with_pictures(text, encode):
    """Ids of a text in which the picture is one token: every part of the text is tokenised as a text of its own."""
    ids = [1]
    for number, part in enumerate(text.split("<image>")):
        ids += ([PICTURE] if number else []) + encode(part)[1:]
    return ids


def plain_sample(caption, encode):
    ids = with_pictures(f"<image>{caption}\n", encode)
    return ids, [IGNORE, IGNORE, *ids[2:]]


def conversation_sample(texts, encode, *, image, max_length, system=SYSTEM):
    """Ids and labels, where the answers are found by counting the tokens of each round and of its question."""
    if image:
        moved = [("<image>\n" + text.replace("<image>", "").strip()).strip() for text in texts]
        texts = [new if "<image>" in text else text for new, text in zip(moved, texts, strict=True)]
    written = system + " "
    for number, text in enumerate(texts):
        role, closing = (("USER", " "), ("ASSISTANT", "</s>"))[number % 2]
        written += f"{role}: {text}{closing}" if text else f"{role}:"
    count = (lambda text: len(with_pictures(text, encode))) if image else (lambda text: len(encode(text)))
    ids = with_pictures(written, encode) if image else encode(written)[:max_length]
    labels, place = [IGNORE, *ids[1:]], 1
    for number, one in enumerate(written.split("</s>")):
        halves = one.split(" ASSISTANT: ")
        if not one or len(halves) != 2:
            break
        asked = count(halves[0] + " ASSISTANT: ") - 2 - (number > 0)  # "▁USER" has a token more than "USER"
        labels[place : place + asked] = [IGNORE] * len(labels[place : place + asked])
        place += count(one) - (number > 0)
    labels[place:] = [IGNORE] * len(labels[place:])
    if place < max_length and place != sum(token != 0 for token in ids):
        labels = [IGNORE] * len(ids)
    return ids, labels


def expanded(sample, image_token, max_length):
    """The picture's token as often as it has visual tokens, which is when LLaVA cuts."""
    ids, labels = [], []
    for token, label in zip(*sample, strict=True):
        ids += [image_token] * VISUAL if token == PICTURE else [token]
        labels += [IGNORE] * VISUAL if token == PICTURE else [label]
    return ids[:max_length], labels[:max_length]


def read(tmp_path, texts, *, image):
    said = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    record = {"id": "one", "conversations": said} | ({"image": "a.png"} if image else {})
    (tmp_path / "data.json").write_text(json.dumps([record]))
    return read_samples(tmp_path / "data.json")[0]


def ours(sample, tokenizer, **options):
    visual = VISUAL if sample.image is not None else 0
    found = tokenize(sample.turns, tokenizer, visual_tokens=visual, picture=sample.marked, **options)
    return found.ids.tolist(), found.labels.tolist()


@pytest.mark.parametrize("max_length", [2048, 250, 60])
@pytest.mark.parametrize(
    ("texts", "image"),
    [(texts, True) for texts in PICTURED] + [(texts, False) for texts in TEXTS] + [(one, True) for one, _ in DROPPED],
)
def test_conversations_are_llavas_to_the_token(tokenizer, pieces, tmp_path, texts, image, max_length):
    token = tokenizer.convert_tokens_to_ids("<image>")
    wanted = expanded(conversation_sample(texts, pieces, image=image, max_length=max_length), token, max_length)
    found = ours(read(tmp_path, texts, image=image), tokenizer, template="vicuna_v1", max_length=max_length)
    assert found == wanted


@pytest.mark.parametrize("max_length", [2048, 12])
@pytest.mark.parametrize(
    "caption", ["a photo", " a photo", "  two", "a\nb\n", "", "\nstart", "12 €😀", "<unk> x", LONG]
)
def test_captions_are_llavas_to_the_token(tokenizer, pieces, tmp_path, caption, max_length):
    token = tokenizer.convert_tokens_to_ids("<image>")
    wanted = expanded(plain_sample(caption, pieces), token, max_length)
    sample = read(tmp_path, ["<image>\nDescribe it.", caption], image=True)
    assert ours(sample, tokenizer, template="plain", max_length=max_length) == wanted
    if caption == "a photo":
        assert tokenizer.convert_ids_to_tokens(wanted[0][1 + VISUAL]) == "▁a"


@pytest.mark.parametrize(("texts", "reason"), DROPPED)
def test_what_llava_drops_is_not_learnt(tokenizer, tmp_path, texts, reason):
    assert set(ours(read(tmp_path, texts, image=True), tokenizer, template="vicuna_v1")[1]) == {IGNORE}, reason


@pytest.mark.parametrize("texts", [texts for texts in PICTURED if len(texts) == 2 and texts[0] != "<image>"])
def test_a_fast_tokenizer_begins_anew_behind_the_picture_too(tmp_path, texts):
    fast = llama_tokenizer()
    token = fast.convert_tokens_to_ids("<image>")
    sample = read(tmp_path, texts, image=True)
    wanted = expanded(
        conversation_sample(texts, lambda text: fast(text).input_ids, image=True, max_length=2048), token, 2048
    )
    assert ours(sample, fast, template="vicuna_v1") == wanted


def test_a_legacy_tokenizer_stays_one(tmp_path):
    """Text behind every special token begins with "▁"; transformers forgets that when it saves."""
    from transformers import AutoTokenizer

    from core.encoders.llava import llava_tokenizer

    loaded = llava_tokenizer(tiny_vicuna(tmp_path / "vicuna", legacy=True))
    loaded.save_pretrained(tmp_path / "saved")
    for tokenizer in (loaded, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert image_gap(tokenizer, "<image>") == ""
        assert tokenizer.convert_ids_to_tokens(tokenizer("a</s>USER").input_ids)[-2:] == ["▁US", "ER"]


# The prompt of every checkpoint is the beginning of what it was trained on


def assert_asked_as_trained(lmm: LMM, *, template: str):
    tokenizer = lmm.processor.tokenizer
    picture, question = Image.new("RGB", (90, 60), "red"), "What is in this picture?"
    asked = lmm.replay(picture, question, "").prompt_ids
    visual = int((asked == lmm.family.image_token_id).sum())
    turns = ((question, "A photo of a cat."), ("Sure?", "Yes."))
    trained = tokenize(turns, tokenizer, template=template, visual_tokens=visual)
    first = int((trained.labels != IGNORE).nonzero()[0])
    assert asked.tolist() == trained.ids[:first].tolist()
    return asked


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return tiny_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return tiny_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module", params=["llava", "difflmm"])
def start(request, vicuna, tower, diffusion, tmp_path_factory):
    """A model that `assemble` made of a directory like Vicuna's on the hub."""
    from core.training.assemble import write_start

    options = {"diffusion": str(diffusion), "encoder": {"image_size": 64, "up_block": 1}}
    return write_start(
        tmp_path_factory.mktemp("start") / request.param,
        language_model=str(vicuna),
        clip=str(tower),
        **(options if request.param == "difflmm" else {}),
    )


def llava_prompt(pieces, image_token, visual, *, system=SYSTEM):
    ids = with_pictures(f"{system} USER: <image>\n{WHAT} ASSISTANT:", pieces)
    return [token for one in ids for token in ([image_token] * visual if one == PICTURE else [one])]


def test_assembled_models_are_asked_as_they_are_trained(start, pieces):
    lmm = load_lmm(start, device="cpu")
    asked = assert_asked_as_trained(lmm, template="vicuna_v1").tolist()
    token = lmm.family.image_token_id
    assert asked == llava_prompt(pieces, token, asked.count(token))
    named = lmm.replay(Image.new("RGB", (90, 60)), WHAT, "", template="llava_v1").prompt_ids.tolist()
    assert named == llava_prompt(pieces, token, asked.count(token), system=SYSTEM.replace("user", "human"))


def test_published_weights_are_asked_as_their_evaluation_does(vicuna, tower, diffusion, pieces, tmp_path):
    from core.encoders.diffusion import DiffusionVisionModel
    from core.encoders.released import KEYS, compat_options, load_released

    settings = {"mm_vision_resolution": 64, "mm_vision_select_layer": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    encoder = DiffusionVisionModel.from_parts(diffusion, tower, **compat_options(settings, width=32))
    names, state = {ours: theirs for theirs, ours in KEYS.items()}, encoder.state_dict()
    weights = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if name in names:
            weights[f"mm_projector.{names[name]}"] = value.flatten(0, -2)
        elif module in names:
            weights[f"mm_projector.{names[module]}.{kind}"] = value
    torch.save(weights, tmp_path / "mm_projector.bin")
    parts = {"language_model": vicuna, "diffusion": diffusion, "clip": tower}
    model, processor = load_released(tmp_path, **parts, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    for lmm in (LMM(model, processor), load_lmm(tmp_path / "saved", device="cpu")):
        asked = assert_asked_as_trained(lmm, template="llava_v1").tolist()
        token = lmm.family.image_token_id
        assert asked == llava_prompt(pieces, token, asked.count(token), system=SYSTEM.replace("user", "human"))


@pytest.mark.parametrize(("stage", "prompt"), [(1, ""), (2, WHAT)])
def test_a_trained_checkpoint_takes_its_template_along(start, pieces, tmp_path, stage, prompt):
    from core.training.recipes import stage_recipe
    from core.training.run import RunOptions, train

    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    read(tmp_path, [f"<image>\n{WHAT}", "A photo of a cat."], image=True)
    recipe = stage_recipe(stage, batch=1, bf16=False, lora_rank=2 * (stage == 2))
    options = RunOptions(device="cpu", workers=0, progress=False, gradient_checkpointing=False)
    lmm = load_lmm(train(start, tmp_path / "data.json", tmp_path / "run", recipe=recipe, options=options), device="cpu")
    data = ConversationData(read_samples(tmp_path / "data.json"), lmm.processor, template=recipe.template)
    trained = data[0]
    first = int((trained["labels"] != IGNORE).nonzero()[0])
    asked = lmm.replay(tmp_path / "a.png", prompt, "").prompt_ids
    assert asked.tolist() == trained["input_ids"][:first].tolist()


# The embedded family


def embedded_sample(tokenizer, turns, visual):
    """A conversation as the shipped weights were trained on it: questions and answers tokenised one by one."""
    ids, labels = [], []
    for number, (question, answer) in enumerate(turns):
        picture = "<image>" * visual + "\n" if number == 0 else ""
        opening = "<s>" if number == 0 else "</s>"
        asked = tokenizer(f"{opening}USER: {picture}{question} ASSISTANT:", add_special_tokens=False).input_ids
        asked = asked[number > 0 :]
        said = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids, labels = ids + asked + said, labels + [IGNORE] * len(asked) + said
    return ids, labels


@pytest.mark.parametrize("name", ["llava", "llava_two_stages", "difflmm"])
def test_the_embedded_models_are_asked_as_they_were_trained(name):
    from embedded.encoder_study.two_stages import caption_sample
    from embedded.recipes.llava import conversation
    from embedded.recipes.tokenizer import CHAT_TEMPLATE
    from embedded.scenes.scenes import make_scene

    lmm = load_lmm(f"embedded/{name}", device="cpu")
    tokenizer = lmm.processor.tokenizer
    assert "▁USER" in tokenizer.get_vocab()  # a token that no training text holds
    for index in range(8):
        scene = make_scene("train", index, size=(60, 80))
        rng = [np.random.default_rng(index) for _ in range(2)]
        found = conversation(tokenizer, scene.caption, scene.questions, 100, rng[0])
        turns = [scene.questions[number] for number in rng[1].permutation(len(scene.questions))[:2]]
        wanted = embedded_sample(tokenizer, [("Describe the image in detail.", scene.caption), *turns], 100)
        assert (found.ids.tolist(), found.labels.tolist()) == wanted
        caption = caption_sample(tokenizer, scene.caption)
        ids = tokenizer("<image>" * 100 + scene.caption + "\n").input_ids
        assert caption.ids.tolist() == ids and caption.labels.tolist() == [IGNORE] * 101 + ids[101:]
    assert lmm.processor.chat_template == CHAT_TEMPLATE
    asked = assert_asked_as_trained(lmm, template=CHAT_TEMPLATE)
    assert tokenizer.convert_ids_to_tokens(asked[:3].tolist()) == ["<s>", "USER", ":"]


def test_prompts_that_write_the_first_token_and_others_do_not_mix(lmms, pictures):
    with pytest.raises(GroundingError, match="only some prompts begin with '<s>'"):
        lmms["llava"].generate(pictures["small"], ["<s>Is <image> it?", "Is <image> it?"], max_new_tokens=1)


# Records


def test_a_picture_stays_where_it_is_marked(tmp_path):
    sample = read(tmp_path, ["Hello ", " Hi", " Look <image>", "A cat "], image=True)
    assert sample.marked == 1 and sample.turns == (("Hello ", " Hi"), ("Look", "A cat "))
    assert read(tmp_path, ["Hello", "Hi"], image=True).marked is None
    assert read(tmp_path, ["<image>", "Hi", "more?"], image=True).turns == (("", "Hi"), ("more?", None))


def test_a_picture_that_is_not_marked_is_shown_with_captions_only(start, tmp_path):
    processor = load_lmm(start, device="cpu").processor
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.png")
    sample = read(tmp_path, ["Hello", "Hi"], image=True)
    shown = [ConversationData([sample], processor, template=name)[0] for name in ("plain", "vicuna_v1")]
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert [one["pixel_values"] is not None for one in shown] == [True, False]
    assert [bool((one["input_ids"] == token).any()) for one in shown] == [True, False]


@pytest.mark.parametrize("texts", [["<image>", "<image>"], ["<image>", "a", "<image>", "b"], ["a", "<image> b"]])
def test_pictures_in_answers_and_in_several_questions_are_refused(tmp_path, texts):
    with pytest.raises(GroundingError, match="mark the picture in one question"):
        read(tmp_path, texts, image=True)
