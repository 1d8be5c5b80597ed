"""The explorer as code uses it: everything that can be clicked can be written, and is core's own."""

from __future__ import annotations

import base64
import datetime
import io
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_groundings
import torch
from einops import rearrange
from PIL import Image

from analysis.drawings import redraw
from analysis.explorer.data import raw_maps
from analysis.explorer.explorer import Explorer
from analysis.explorer.gallery import gallery_maps, packed_gallery, phrase_galleries
from core import PRESETS, GroundOptions, attend_and_segment, ground, load_image
from core.attention import to_grid
from core.errors import GroundingError
from core.pipeline import phrase_maps, phrase_points
from core.streaming import AnswerStream

SHORT = {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def parts(embedded_parts):
    return {"model": embedded_parts["lmm"], "segmenter": embedded_parts["segmenter"], "nlp": embedded_parts["nlp"]}


@pytest.fixture
def explorer(parts):
    made = Explorer(**parts, generation=SHORT)
    made.ask("embedded")
    return made


def unpacked(told: dict, shape: tuple[int, ...]) -> np.ndarray:
    shares = np.frombuffer(base64.b64decode(told["maps"]), "<u2").reshape(shape) / 65535
    return shares * np.array(told["highest"])[:, None]


def test_asking_grounds_as_core_does_and_streams(parts, embedded_parts):
    explorer, heard = Explorer(**parts, generation={"max_new_tokens": 60}), []
    explorer.view.observe(lambda change: heard.append(change["new"]), "written")
    found = explorer.ask("embedded", "How many objects are there?")
    own = attend_and_segment("embedded", "How many objects are there?", max_new_tokens=60, **embedded_parts)
    assert found.generation.text == own.generation.text and found.phrases == own.phrases
    assert torch.equal(found.points, own.points) and found.masks == own.masks
    assert "streamer" not in found.generation.model["generation"]
    said = [each for each in heard if each]
    assert said and all(found.generation.text.startswith(each) for each in said)
    (shown,) = explorer.view.answers
    assert shown["text"] == own.generation.text and not explorer.view.busy


def test_every_token_is_told_as_it_is_written(embedded_parts):
    lmm, heard = embedded_parts["lmm"], []
    stream = AnswerStream(lmm.processor.tokenizer, heard.append)
    answer = lmm.generate("embedded", "How many objects are there?", streamer=stream, **SHORT)
    assert len(heard) == len(answer.token_ids) and heard[-1] == answer.text
    assert all(b.startswith(a) for a, b in itertools.pairwise(heard))


def test_words_are_chosen_by_phrase_by_text_and_by_token(explorer):
    first = explorer.told.grounding.phrases[1]
    by_phrase = explorer.select(first.text)
    assert by_phrase.phrases == (first,) and explorer.view.tokens == list(first.tokens)
    assert explorer.view.mask["codes"] == list(by_phrase.masks[0])
    assert explorer.select(*first.tokens).phrases == (first,)
    assert explorer.select("features").phrases[0].text == "features"
    both = explorer.select(first.text, "features")
    assert set(both.phrases[0].tokens) > set(first.tokens)
    brightest = to_grid(explorer.told.grounding.maps, explorer.told.grounding.view).amax((1, 2)).argmax()
    assert explorer.select().phrases == (explorer.told.grounding.phrases[int(brightest)],)
    with pytest.raises(GroundingError, match="does not say 'a purple whale'"):
        explorer.select("a purple whale")
    with pytest.raises(GroundingError, match=r"tokens \[999\] must name at least one of 0\.\.23"):
        explorer.select(999)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "none"},
        {"aggregation": "pixel_max", "remove_corners": True},
        {"mask_choice": "all"},
        {"sam_prompt": "mask"},
        {"layers": [3], "heads": [0, 1]},
        {"heads": [-2], "normalization": "ratio"},
    ],
)
def test_the_controls_ground_as_the_same_options_do(explorer, changes):
    phrase = explorer.told.grounding.phrases[1]
    for name, value in changes.items():
        setattr(explorer.view, name, value)
    found = explorer.select(phrase.text)
    options = replace(explorer.told.grounding.options, **changes)
    own = ground(
        explorer.told.grounding.generation,
        explorer.told.image,
        segmenter=explorer.segmenter,
        nlp=None,
        phrases=[phrase],
        options=options,
    )
    assert torch.equal(found.points, own.points) and explorer.view.mask["codes"] == list(own.masks[0])
    assert explorer.view.status == ""


def test_maps_of_chosen_heads_are_sent(explorer):
    explorer.view.layers = [2]
    generation = explorer.told.grounding.generation
    sent = explorer.view.head_maps
    assert sent["for"] == [0, [2], []]
    own = generation.attention_per_head[:, 2].mean(1).numpy()
    np.testing.assert_allclose(unpacked(sent, own.shape), own, atol=float(own.max()) / 60000)
    explorer.view.heads = [9]
    assert "head selection [9]" in explorer.view.status
    explorer.view.heads = []
    assert explorer.view.status == ""


def test_other_rows_are_read_by_the_model(explorer, embedded_parts):
    text = explorer.told.grounding.generation.text
    explorer.view.row = "self"
    told = explorer.told.grounding
    assert told.options.row == "self" and told.generation.text == text and explorer.view.status == ""
    ids = told.generation.token_ids
    own = embedded_parts["lmm"].replay("embedded", "Describe the image in detail.", ids, row="self")
    torch.testing.assert_close(told.generation.attention, own.attention)
    assert len(explorer.view.answers) == 1 and explorer.view.answers[0]["chosen"]["row"] == "self"


def test_a_sentence_of_ones_own(explorer):
    found = explorer.say("A red star is next to a blue moon.", "embedded")
    assert [phrase.text for phrase in found.phrases] == ["A red star", "a blue moon"]
    assert explorer.view.answer == 1 and len(explorer.view.answers) == 2
    with pytest.raises(GroundingError, match="write a sentence"):
        explorer.say("  ")


def test_a_preset_or_another_model_beside_the_answer(explorer):
    explorer.compare("reference_v2")
    assert (explorer.view.answer, explorer.view.beside) == (0, 1)
    assert explorer.view.answers[1]["chosen"]["aggregation"] == "max"
    phrase = explorer.told.grounding.phrases[1]
    explorer.select(phrase.text)
    left, right = (explorer.selected(told) for told in explorer.shown)
    assert (left.options.aggregation, right.options.aggregation) == ("mean", "max")
    explorer.compare(model="embedded/difflmm")
    other = explorer.shown[1]
    assert other.model == "embedded/difflmm" and other.grounding.generation.text == explorer.view.answers[0]["text"]
    explorer.select(phrase.text)
    left, right = (explorer.selected(told) for told in explorer.shown)
    assert left.phrases[0].text in right.phrases[0].text and not torch.equal(left.maps, right.maps)


def test_the_figure_holds_what_is_shown(explorer, tmp_path):
    with pytest.raises(GroundingError, match=r"tokens \[\] must name"):
        explorer.figure(tmp_path)
    explorer.compare("no_normalization")
    explorer.view.show_gallery = True
    found = explorer.select()
    explorer.figure(tmp_path, "shown")
    for name in ("shown", "shown_heads"):
        assert all((tmp_path / f"{name}.{ending}").stat().st_size > 200 for ending in ("png", "pdf", "csv"))
    drawn = pd.read_csv(tmp_path / "shown.csv")
    maps = drawn[drawn["kind"] == "map"]
    assert maps["axes"].nunique() == 2 and maps["axes"].str.contains("normalization none").any()
    own = to_grid(found.maps, found.view)[0].numpy().ravel()
    np.testing.assert_allclose(maps["value"].to_numpy()[: own.size], own, rtol=1e-4, atol=1e-8)
    (tmp_path / "shown.csv").unlink()
    redraw(tmp_path / "shown.npz")  # without the explorer
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "shown.csv"), drawn)
    explorer.look(60.5, 112.5)
    explorer.figure(tmp_path)
    bars = pd.read_csv(tmp_path / "place.csv").query("kind == 'bar'")
    assert len(bars) == 12
    explorer.look(-500.0, 3.0)
    with pytest.raises(GroundingError, match="lies outside of the view"):
        explorer.figure(tmp_path)


def test_records_need_no_model(captured, tmp_path):
    _, dataset, store = captured
    explorer = Explorer.of_records(store, dict(dataset.items()), prompts="Describe the image in detail.")
    assert [each["title"] for each in explorer.view.answers] == [f"{n + 1}. {id}" for n, id in enumerate(store.ids())]
    first = store.read(store.ids()[0])
    phrase = first.phrases[0]
    expected = phrase_points(first.generation, [phrase])
    assert torch.equal(explorer.select(phrase.text).points, expected)
    assert explorer.save_html(tmp_path / "page.html").stat().st_size < 2_000_000
    assert "row" not in explorer.view.can and "mask_choice" not in explorer.view.can
    explorer.view.row = "self"
    assert "other rows of attention need the model" in explorer.view.status
    with pytest.raises(GroundingError, match="has no model to ask"):
        explorer.ask("embedded")
    with pytest.raises(GroundingError, match="maps of single heads were not kept"):
        explorer.save_html(tmp_path / "heads.html", heads=True)


def test_before_a_question_there_is_nothing_to_choose(parts):
    explorer = Explorer(**parts)
    for act in (explorer.select, explorer.figure, lambda: explorer.compare("reference_v2")):
        with pytest.raises(GroundingError, match="ask something first"):
            act()
    with pytest.raises(GroundingError, match="there is no answer 0; there are 0"):
        explorer.show(0)


def test_an_error_in_the_panel_is_told_and_nothing_is_lost(explorer):
    answers = list(explorer.view.answers)
    explorer.panel.pictures["embedded scene"] = "no/such/file.png"
    explorer.panel.children[0].children[3].click()
    assert "'no/such/file.png' does not exist" in explorer.view.status and not explorer.view.busy
    assert explorer.view.answers == answers
    buffer = io.BytesIO()
    load_image("embedded").save(buffer, "PNG")
    upload = explorer.panel.children[0].children[1]
    content = memoryview(buffer.getvalue())
    modified = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    file = {"name": "mine.png", "type": "image/png", "size": len(content), "last_modified": modified}
    upload.set_trait("value", (file | {"content": content},))
    explorer.panel.children[0].children[3].click()
    assert explorer.view.status == "" and len(explorer.view.answers) == 2


def test_the_oldest_answers_are_dropped(parts):
    explorer = Explorer(**parts, history=2)
    for sentence in ("A star.", "A moon.", "A flag."):
        explorer.say(sentence, "embedded")
    assert [each["text"] for each in explorer.view.answers] == ["A moon.", "A flag."]
    assert explorer.told.grounding.generation.text == "A flag."


def test_an_answer_in_anothers_place_does_not_inherit_its_mask(parts):
    explorer = Explorer(**parts, history=1)
    explorer.say("A blue moon.", "embedded")
    explorer.view.heads = [1]
    first = explorer.select(0, 1)
    explorer.say("A yellow flag.", "embedded")
    assert explorer.view.mask == explorer.view.head_maps == {}
    explorer.view.heads = [1]
    second = explorer.select(0, 1)
    assert explorer.view.mask["codes"] == list(second.masks[0]) != list(first.masks[0])


# ---- maps of all heads


@pytest.fixture
def tiny():
    made = tiny_groundings.generation(size=(60, 90), per_head=(2, 3))
    picture = Image.new("RGB", (90, 60))
    return ground(made, picture, segmenter=None, nlp=tiny_groundings.nlp())


@pytest.mark.parametrize("how", ["sequence", "none", "words", "ratio"])
@pytest.mark.parametrize("aggregation", ["mean", "max", "first"])
def test_each_map_of_the_gallery_is_that_of_its_head_alone(tiny, how, aggregation):
    options = GroundOptions(normalization=how, aggregation=aggregation)
    tokens = tiny.phrases[0].tokens
    maps = gallery_maps(tiny, tokens, options)
    for layer in range(2):
        for head in range(3):
            own = phrase_maps(tiny.generation, tiny.phrases[:1], options=options, layers=[layer], heads=[head])
            torch.testing.assert_close(maps[layer, head], to_grid(own, tiny.view)[0])


def test_a_gallery_is_as_fine_as_its_bytes_allow(tiny):
    maps = gallery_maps(tiny, (0,), tiny.options)
    whole = packed_gallery(maps)
    values = np.frombuffer(base64.b64decode(whole["maps"]), np.uint8).reshape(6, 4, 6) / 255
    own = rearrange(maps, "l n h w -> (l n) h w").clamp(min=0).numpy()
    np.testing.assert_allclose(values * np.array(whole["highest"])[:, None, None], own, atol=float(own.max()) / 400)
    for limit in (10_000, 100, 30, 1):
        galleries = phrase_galleries(tiny, limit=limit)
        size = sum(len(base64.b64decode(each["maps"])) for each in galleries)
        assert size <= max(limit, 2 * 6) and all(each["h"] >= 1 for each in galleries)
    small = packed_gallery(maps, cells=6)
    assert (small["h"], small["w"]) == (2, 3)
    kept = np.frombuffer(base64.b64decode(small["maps"]), np.uint8).reshape(6, 2, 3) / 255
    halves = rearrange(maps, "l n (h a) (w b) -> (l n) h w a b", a=2, b=2).mean((3, 4))
    np.testing.assert_allclose(
        kept * np.array(small["highest"])[:, None, None], halves.clamp(min=0).numpy(), atol=float(own.max()) / 400
    )


def test_single_heads_that_were_not_kept_are_refused(tiny):
    slim = replace(tiny, generation=replace(tiny.generation, attention_per_head=None))
    for act in (lambda: gallery_maps(slim, (0,), slim.options), lambda: phrase_galleries(slim)):
        with pytest.raises(GroundingError, match="single heads were not kept"):
            act()
    chosen = replace(tiny, options=PRESETS["reference_v1"])
    expected = tiny.generation.attention_per_head[:, :, -2].mean(1)
    torch.testing.assert_close(raw_maps(chosen), expected)
