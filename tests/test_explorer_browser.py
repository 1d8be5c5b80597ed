"""The explorer in a real Chromium: as a page of its own, and in a real JupyterLab with the embedded model."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_groundings
from browser import chromium, jupyterlab, open_page, own_errors
from PIL import Image
from tiny_coco import compressed, rectangle

from analysis.explorer.data import explorer_data
from analysis.explorer.gallery import phrase_galleries
from analysis.explorer.page import explorer_iframe, save_html
from core.options import GroundOptions
from core.pipeline import ground, phrase_points

pytestmark = pytest.mark.timeout(600)
SIZE = (60, 90)
EVIL = "A red star <img src=x onerror=alert(1)></script><script>alert(2)</script> \u202eabc\u0301 🦊 & the blue rook."


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def grounded(text: str = "There is a red star next to the blue rook.", **options):
    """An answer with masks and the maps of 2 layers of 3 heads, and its picture."""
    made = tiny_groundings.generation(text, size=SIZE, per_head=(2, 3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    found = ground(made, picture, segmenter=None, nlp=tiny_groundings.nlp(), options=GroundOptions(**options))
    return replace(found, masks=((compressed(rectangle(SIZE, 20, 20, 40, 40)),),) * len(found.phrases)), picture


def answer(text: str = "There is a red star next to the blue rook.", title: str = "first", **options):
    found, picture = grounded(text, **options)
    return explorer_data(found, picture, prompt="What is there?", title=title, galleries=phrase_galleries(found))


@pytest.fixture
def page(browser, tmp_path):
    """An exported file with two readings of one answer, opened; nothing may be written to its console."""
    path = save_html([answer(), answer(title="second", aggregation="max", normalization="none")], tmp_path / "out.html")
    opened, errors = open_page(browser, path.as_uri())
    opened.wait_for_selector('.explorer[data-ready="yes"]')
    yield opened
    assert errors == []
    opened.close()


def pixels(page, which: int = 0) -> str:
    """What a canvas shows, as a digest."""
    drawn = page.locator("canvas").nth(which).evaluate("canvas => canvas.toDataURL()")
    return hashlib.sha256(drawn.encode()).hexdigest()


def told(page, name: str) -> str:
    page.wait_for_timeout(30)  # what is shown follows in a microtask
    return page.locator(".explorer").get_attribute(f"data-{name}")


def word(page, said: str):
    return page.locator(".word", has_text=said).first


def expected_point(phrase: int, **options) -> str:
    found, _ = grounded()
    x, y = phrase_points(found.generation, [found.phrases[phrase]], **options)[0].tolist()
    return f"{x:g},{y:g}"


def test_a_click_draws_that_words_map_point_and_mask(page):
    before = pixels(page)
    word(page, "star").click()
    assert told(page, "peak") == expected_point(0) and told(page, "masks") == "1"
    star = pixels(page)
    word(page, "rook").click()
    assert told(page, "peak") == expected_point(1)
    assert len({before, star, pixels(page)}) == 3
    assert "the blue rook: looked most at" in page.locator(".read").inner_text()


def test_shift_click_adds_words_and_escape_takes_them_back(page):
    word(page, "star").click()
    word(page, "rook").click(modifiers=["Shift"])
    assert told(page, "tokens") == "4,9" and told(page, "masks") == "2"
    page.keyboard.press("Escape")
    word(page, "rook").click(modifiers=["Shift"])
    word(page, "next").click(modifiers=["Shift"])
    assert told(page, "masks") == "0" and "No mask is kept" in page.locator(".read").inner_text()


def test_other_options_move_the_point_and_drop_the_records_mask(page):
    word(page, "star").click()
    seen = pixels(page)
    page.locator("[data-control=normalization]").select_option("none")
    assert told(page, "peak") == expected_point(0, normalization="none") and told(page, "masks") == "0"
    assert pixels(page) != seen
    chosen = page.locator("[data-control=normalization] option", has_text="(paper)")
    assert chosen.get_attribute("value") == "sequence"
    page.locator("[data-control=normalization]").select_option("sequence")
    assert told(page, "masks") == "1" and pixels(page) == seen


def test_everything_can_be_done_from_the_keyboard(page):
    word(page, "There").focus()
    page.keyboard.press("ArrowRight")
    assert told(page, "tokens") == "1"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert told(page, "tokens") == "4" and told(page, "peak") == expected_point(0)
    focused = page.evaluate("document.activeElement.textContent")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "star" and outline == "solid"
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert told(page, "looked") and "Looked here" in page.locator(".read").inner_text()


def test_a_place_lights_up_the_words_that_looked_there(page):
    canvas = page.locator("canvas").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.6})
    first = told(page, "looked").split(",")[0]
    found, _ = grounded()
    maps = found.generation.attention - found.generation.attention.mean(0)
    column, row = int(0.3 * 6), int(0.6 * 4)
    grid = maps[:, found.view.index]
    shares = grid[:, row, column] / grid.amax((1, 2))
    words = [i for i, (a, b) in enumerate(found.generation.token_spans.tolist()) if a < b]
    assert int(first) == max(words, key=lambda i: float(shares[i]))


def test_a_head_of_the_gallery_is_used_alone(page):
    word(page, "star").click()
    whole = told(page, "peak")
    page.locator("summary").click()
    gallery = page.locator("canvas.gallery")
    gallery.wait_for()
    box = gallery.bounding_box()
    gallery.click(position={"x": box["width"] * 5 / 6, "y": box["height"] * 0.75})
    found, _ = grounded()
    x, y = phrase_points(found.generation, found.phrases[:1], layers=[1], heads=[2])[0].tolist()
    assert page.locator("[data-control=layers]").input_value() == "1"
    assert told(page, "peak") != whole
    px, py = (float(each) for each in told(page, "peak").split(","))
    assert abs(px - x) < SIZE[1] / 6 and abs(py - y) < SIZE[0] / 4  # kept in 8 bits: within a cell
    assert "coarse" in page.locator(".read").inner_text()
    gallery.focus()
    page.keyboard.press("Escape")
    assert told(page, "peak") == whole


def test_two_readings_stand_side_by_side(page):
    page.locator("label", has_text="beside").locator("select").select_option(index=1)
    word(page, "star").click()
    page.wait_for_function("document.querySelectorAll('figure')[1].querySelector('canvas').width > 300")
    page.wait_for_timeout(200)
    assert page.locator("figure").nth(1).is_visible() and pixels(page, 0) != pixels(page, 1)
    assert "second" in page.locator("figcaption").nth(1).inner_text()


def test_hostile_text_is_text(browser, tmp_path):
    path = save_html([answer(EVIL, title=EVIL)], tmp_path / "evil.html", title=EVIL)
    opened, errors = open_page(browser, path.as_uri())
    opened.on("dialog", lambda dialog: errors.append(dialog.message))
    opened.wait_for_selector('.explorer[data-ready="yes"]')
    assert opened.locator(".answer").inner_text() == EVIL and opened.locator("img").count() == 0
    word(opened, "star").click()
    assert told(opened, "peak") and errors == []
    opened.close()


def test_four_thousand_tokens_are_usable(browser, tmp_path):
    found, picture = grounded(" ".join(["There is a red star next to the blue rook."] * 400))
    whole = replace(found, generation=replace(found.generation, attention_per_head=None))
    path = save_html([explorer_data(whole, picture)], tmp_path / "long.html")
    opened, errors = open_page(browser, path.as_uri())
    opened.wait_for_selector('.explorer[data-ready="yes"]')
    assert opened.locator(".word").count() == 4000
    opened.locator(".word").nth(3994).click()
    assert told(opened, "peak") and errors == []
    opened.close()


@pytest.mark.parametrize("width", [1280, 1000, 480])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_text_stands_out(browser, tmp_path, width, scheme):
    path = save_html([answer(), answer(title="second " * 30)], tmp_path / "out.html")
    opened, _ = open_page(browser, path.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.wait_for_selector('.explorer[data-ready="yes"]')
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    luminance = """selector => { const rgb = getComputedStyle(document.querySelector(selector))[selector === '.card' ?
      'backgroundColor' : 'color'].match(/\\d+/g).map(Number).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 :
      ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]; }"""
    card = opened.evaluate(luminance, ".card")
    for text in (".answer", ".prompt", ".help"):
        own = opened.evaluate(luminance, text)
        assert (max(own, card) + 0.05) / (min(own, card) + 0.05) > 4.5  # WCAG AA
    opened.close()


def test_the_frame_of_a_report_is_alive(browser, tmp_path):
    report = tmp_path / "report.html"
    report.write_text(
        f"<!doctype html><meta charset=utf-8><body>{explorer_iframe([answer()])}</body>", encoding="utf-8"
    )
    opened, errors = open_page(browser, report.as_uri())
    frame = opened.frame_locator("iframe")
    frame.locator('.explorer[data-ready="yes"]').wait_for()
    frame.locator(".word", has_text="rook").click()
    frame.locator(f'.explorer[data-peak="{expected_point(1)}"]').wait_for()
    assert errors == []
    opened.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """The explorer's notebook, run in JupyterLab; the page and its errors."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(Path(__file__).parent.parent / "notebooks" / "explorer.ipynb", folder)
    with jupyterlab(folder) as address:
        opened, errors = open_page(
            browser, f"{address}/lab/tree/explorer.ipynb", viewport={"width": 1500, "height": 1000}
        )
        opened.get_by_text("| Idle").wait_for(timeout=120_000)
        opened.get_by_role("menuitem", name="Run", exact=True).click()
        opened.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        opened.locator('.explorer:not([data-peak=""])[data-peak]').first.wait_for(timeout=240_000)
        opened.locator("iframe").first.wait_for(timeout=120_000)
        yield opened, errors


def ready(page, attribute: str = "", timeout: int = 60_000):
    page.locator(f".jp-OutputArea .explorer{attribute}").first.wait_for(timeout=timeout)
    return page.locator(".jp-OutputArea .explorer").first


def test_in_jupyterlab_a_click_draws_and_the_kernel_adds_the_mask(lab):
    page, _ = lab
    explorer = ready(page)
    explorer.scroll_into_view_if_needed()
    before = pixels(explorer)
    explorer.locator(".word").nth(1).click()
    ready(page, '[data-tokens="1"]:not([data-peak=""])')
    assert pixels(explorer) != before
    explorer.locator("[data-control=normalization]").select_option("none")
    ready(page, '[data-masks="1"]')  # of this choice there is none in the record: the kernel asked the segmenter
    explorer.locator("[data-control=normalization]").select_option("sequence")


def test_in_jupyterlab_single_heads_and_other_rows_come_from_the_kernel(lab):
    page, _ = lab
    explorer = ready(page)
    explorer.locator(".word").nth(1).click()
    explorer.locator("summary").click()
    gallery = explorer.locator("canvas.gallery")
    gallery.wait_for()
    page.wait_for_function("document.querySelector('.jp-OutputArea canvas.gallery').tile")
    before = explorer.get_attribute("data-peak")
    gallery.click(position={"x": 10, "y": 10})
    page.wait_for_timeout(1500)
    assert explorer.locator("[data-control=heads]").input_value() == "0"
    assert "on their way" not in explorer.locator(".read").inner_text() and explorer.get_attribute("data-peak")
    explorer.locator("[data-control=layers]").select_option("")
    explorer.locator("[data-control=heads]").select_option("")
    ready(page, f'[data-peak="{before}"]')
    drawn = pixels(explorer)
    explorer.locator("[data-control=row]").select_option("self")
    page.wait_for_timeout(2500)
    assert not explorer.locator(".status").inner_text() and pixels(explorer) != drawn


def test_in_jupyterlab_a_question_and_a_sentence_of_ones_own(lab):
    page, errors = lab
    explorer = ready(page)
    page.get_by_placeholder("a sentence of your own").fill("A green flag is next to a red star.")
    page.get_by_role("button", name="Ground it").click()
    explorer.get_by_role("button", name="flag", exact=True).click(timeout=60_000)
    ready(page, '[data-tokens]:not([data-peak=""])')
    page.get_by_label("question").fill("How many objects are there?")
    page.get_by_role("button", name="Ask", exact=True).click()
    explorer.get_by_role("button", name="objects", exact=True).first.wait_for(timeout=60_000)
    assert "How many objects are there?" in explorer.locator(".prompt").inner_text()
    page.get_by_placeholder("a sentence of your own").fill(" ")
    page.get_by_role("button", name="Ground it").click()
    page.get_by_text("there is nothing to ground; write a sentence").first.wait_for(timeout=30_000)
    assert own_errors(errors) == []
