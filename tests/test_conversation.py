"""Grounded conversations: text, colours, masks and maps belong together; the page needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from tiny_coco import grounding, rectangle

from analysis.conversation.figure import conversation_figure
from analysis.conversation.objects import coloured_pieces, drawn_answer, drawn_objects, phrase_table, reading
from analysis.conversation.page import attention_pictures, conversation_html, write_page
from analysis.figures import PALETTE

SIZE = (60, 90)
LEFT, RIGHT = rectangle(SIZE, 5, 5, 35, 45), rectangle(SIZE, 50, 10, 85, 50)
NEARLY_LEFT = rectangle(SIZE, 6, 6, 36, 45)


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


@pytest.fixture
def answer():
    """Star (left), cat (right), star again (nearly the same mask), and a moon whose mask is empty."""
    said = [
        ("star", (20.5, 20.5), [LEFT]), ("cat", (60.5, 30.5), [RIGHT]), ("star", (21.5, 21.5), [NEARLY_LEFT]),
        ("moon", (1.5, 1.5), [np.zeros(SIZE, bool)]),
    ]  # fmt: skip
    made = grounding(SIZE, said)
    made.scores[:, 0] = made.scores.new_tensor([0.7, 0.9, 0.8, 0.99])
    return made


def test_an_object_mentioned_twice_is_one_object(answer):
    star, cat = drawn_objects(answer)
    assert star.phrases == (2, 0) and cat.phrases == (1,)  # the better mask leads
    assert np.array_equal(star.mask, NEARLY_LEFT) and star.score == pytest.approx(0.8)
    assert star.point == (21.5, 21.5)
    assert (star.colour, cat.colour) == PALETTE[:2]


def test_the_same_noun_elsewhere_is_another_object():
    made = grounding(SIZE, [("star", (1.5, 1.5), [LEFT]), ("star", (60.5, 30.5), [RIGHT])])
    assert len(drawn_objects(made)) == 2


def test_of_three_masks_the_best_is_shown():
    made = grounding(SIZE, [("star", (1.5, 1.5), [LEFT, RIGHT, NEARLY_LEFT])], scores=(0.2, 0.9, 0.5))
    (star,) = drawn_objects(made)
    assert np.array_equal(star.mask, RIGHT) and star.score == pytest.approx(0.9)


def test_the_best_masks_do_not_overlap():
    said = [("star", (1.5, 1.5), [LEFT]), ("cat", (2.5, 2.5), [NEARLY_LEFT]), ("moon", (60.5, 30.5), [RIGHT])]
    made = grounding(SIZE, said)
    made.scores[:, 0] = made.scores.new_tensor([0.6, 0.9, 0.5])
    kept = drawn_objects(made, best=4)
    assert [made.phrases[each.phrases[0]].root for each in kept] == ["cat", "moon"]
    assert not (kept[0].mask & kept[1].mask).any()
    assert [made.phrases[each.phrases[0]].root for each in drawn_objects(made, best=1)] == ["cat"]
    assert len(drawn_objects(made, best=4, max_overlap=1.0)) == 3


def test_words_that_look_at_nothing_can_be_left_out():
    maps = np.full((5, 4, 6), 0.01)
    maps[1, 0, 0], maps[3, 2, 2] = 1.0, 0.2
    made = grounding(SIZE, [("star", (1.5, 1.5), [LEFT]), ("image", (60.5, 30.5), [RIGHT])], maps=maps)
    for share, names in ((0.0, ["star", "image"]), (0.2, ["star", "image"]), (0.21, ["star"]), (1.0, ["star"])):
        shown = drawn_objects(made, min_attention=share)
        assert [made.phrases[each.phrases[0]].root for each in shown] == names
    assert drawn_objects(grounding(SIZE, []), min_attention=0.5) == ()


def test_pieces_make_up_the_answer(answer):
    objects = drawn_objects(answer)
    pieces = coloured_pieces(answer, objects)
    assert "".join(text for text, _ in pieces) == answer.generation.text
    assert [piece for piece in pieces if piece[1] is not None] == [("a star", 0), ("a cat", 1), ("a star", 0)]


def test_the_page_is_complete_and_needs_nothing_from_elsewhere(answer, picture, tmp_path):
    fragment = conversation_html(picture, answer, "What <b>is</b> & isn't here?")
    path = write_page([fragment], tmp_path / "deep" / "page.html", title="Conversation <1>")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Conversation &lt;1&gt;" in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"https?://|@import|<link", page)
    assert "What &lt;b&gt;is&lt;/b&gt; &amp; isn&#x27;t here?" in page
    said = re.search(r'attend-and-segment</p><p class="said">(.*?)</p>', page)[1]
    assert re.sub(r"<[^>]+>", "", said) == answer.generation.text
    assert "model + attend-and-segment" in page


def test_phrases_and_masks_share_their_colours(answer, picture):
    page = conversation_html(picture, answer, "Describe.", long_side=90)
    objects = drawn_objects(answer)
    layers = re.findall(r'data-layer="(\d+)" alt="" src="data:image/png;base64,([^"]+)"', page)
    assert [int(number) for number, _ in layers] == [0, 1]
    for (_, content), each in zip(layers, objects, strict=True):
        layer = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert np.array_equal(layer[..., 3] > 0, each.mask)
        assert layer[0, 0, :3] / 255 == pytest.approx(to_rgb(each.colour), abs=0.003)
    marks = re.findall(r'<mark data-object="(\d)" style="[^"]*-\.16em (#\w+)">([^<]+)<', page)
    assert marks == [("0", PALETTE[0], "a star"), ("1", PALETTE[1], "a cat"), ("0", PALETTE[0], "a star")]
    assert page.count("<figure>") == 2


def test_lines_and_odd_characters_survive(picture):
    made = grounding(SIZE, [("star", (1.5, 1.5), [LEFT])])
    odd = replace(made, generation=replace(made.generation, text="a star\n<script>é$x$</script>"))
    page = conversation_html(picture, odd, "Describe.")
    assert "</mark><br>&lt;script&gt;é$x$&lt;/script&gt;" in page
    conversation_figure(picture, drawn_answer(odd), "What costs $5 and $6?").canvas.draw()
    plt.close("all")


def test_an_answer_without_phrases_is_shown_without_masks(picture):
    page = conversation_html(picture, grounding(SIZE, []), "Describe.")
    assert "(an empty answer)" in page and "No noun phrase" in page and 'class="layer"' not in page
    figure = conversation_figure(picture, drawn_answer(grounding(SIZE, [])), "Describe.")
    assert len(figure.axes) == 2
    plt.close(figure)


def test_maps_are_brightest_where_the_map_is(picture):
    maps = np.zeros((3, 6, 9))
    maps[1, 1, 7] = 1.0
    made = grounding(SIZE, [("star", (75.5, 15.5), [RIGHT])], maps=maps)
    (shown,) = attention_pictures(Image.new("RGB", (90, 60)), made, drawn_objects(made))
    light = np.asarray(shown).astype(int).sum(axis=2)
    light[np.hypot(*(np.indices(light.shape) - np.array([15, 75])[:, None, None])) < 6] = 0  # the white dot
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert 8 <= row <= 22 and 66 <= column <= 84


@pytest.mark.parametrize("shape", [(60, 90), (120, 40)])
def test_the_figure_has_picture_text_and_one_map_per_object(shape):
    picture = Image.new("RGB", (shape[1], shape[0]), "white")
    masks = [rectangle(shape, 0, 0, 15, 20), rectangle(shape, 20, 30, 38, 55)]
    made = grounding(shape, [("star", (5.5, 5.5), [masks[0]]), ("cat", (25.5, 35.5), [masks[1]])])
    figure = conversation_figure(picture, drawn_answer(made), "Describe.")
    assert len(figure.axes) == 4
    shown, text, *maps = figure.axes
    patches = {each.get_text(): each.get_bbox_patch() for each in text.texts if each.get_bbox_patch() is not None}
    assert {words for words, patch in patches.items() if patch.get_facecolor()[3] > 0} == {"a star", "a cat"}
    assert [ax.get_title() for ax in maps] == ["a star", "a cat"]
    assert len({id(ax.images[1].norm) for ax in maps}) and maps[0].images[1].norm.vmax == maps[1].images[1].norm.vmax
    box = shown.get_position()
    width, height = figure.get_size_inches()
    assert box.width * width / (box.height * height) == pytest.approx(shape[1] / shape[0], rel=1e-6)
    assert len(conversation_figure(picture, drawn_answer(made), "Describe.", maps=False).axes) == 2
    plt.close("all")


def test_titles_of_neighbouring_maps_do_not_touch():
    shape = (120, 90)
    names = ["checkered beige background", "mushroom in the bottom left corner", "cat"] * 3
    said = [(name, (10.5 * i + 5, 5.5), [rectangle(shape, 10 * i, 0, 10 * i + 9, 20)]) for i, name in enumerate(names)]
    figure = conversation_figure(Image.new("RGB", (90, 120)), drawn_answer(grounding(shape, said)), "Describe.")
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes[2:]]
    assert len(boxes) > 4 and not any(one.overlaps(other) for one, other in pairwise(boxes))
    assert figure.axes[2].get_title().endswith("…") and figure.axes[4].get_title() == "a cat"
    plt.close(figure)


def test_long_answers_wrap_inside_the_text(picture):
    said = [("star", (20.5, 20.5), [LEFT])] * 40
    figure = conversation_figure(picture, drawn_answer(grounding(SIZE, said)), "Describe.")
    text = figure.axes[1]
    figure.canvas.draw()
    frame = text.get_window_extent()
    for each in text.texts:
        box = each.get_window_extent()
        assert frame.x0 - 2 <= box.x0 and box.x1 <= frame.x1 + 2
        assert frame.y0 - 2 <= box.y0 and box.y1 <= frame.y1 + 2
    plt.close(figure)


def test_the_phrase_table_and_the_sentence_tell_the_same(answer, picture):
    table = phrase_table({"one": (picture, answer)})
    assert table["phrase"].tolist() == ["a star", "a cat", "a star", "a moon"]
    areas = [100 * pixels / 5400 for pixels in (1200, 1400, 1170, 0)]
    assert table["mask % of image"].tolist() == pytest.approx(areas)
    assert reading("one", answer) == "one: 9 tokens, 4 noun phrases, 2 objects shown (star, cat)."
