"""The explorer's page: what it computes is core's own, and nothing that an answer says is run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import tiny_groundings
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from py_mini_racer import MiniRacer
from tiny_coco import compressed, grounding, rectangle

from analysis.explorer.data import explorer_data, utf16_places
from analysis.explorer.page import explorer_iframe, explorer_page, save_html
from core.attention import AGGREGATIONS, NORMALIZATIONS
from core.errors import GroundingError
from core.geometry import View, map_to_pixels
from core.options import GroundOptions
from core.pipeline import ground, phrase_points

SIZES = [(60, 90), (110, 60), (64, 64)]
ATOB = """
function atob(text) {
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  let out = "";
  for (let i = 0; i < text.length; i += 4) {
    const n = [0, 1, 2, 3].map((j) => letters.indexOf(text[i + j]));
    out += String.fromCharCode((n[0] << 2) | (n[1] >> 4));
    if (n[2] >= 0) out += String.fromCharCode(((n[1] & 15) << 4) | (n[2] >> 2));
    if (n[3] >= 0) out += String.fromCharCode(((n[2] & 3) << 6) | n[3]);
  }
  return out;
}
"""  # V8 alone has none


@pytest.fixture(scope="module")
def page():
    """The page's own functions, in V8."""
    engine = MiniRacer()
    engine.eval(ATOB)
    engine.eval((files("analysis") / "explorer" / "maps.js").read_text(encoding="utf-8"))

    def run(call: str, *values):
        """What an expression gives, with the values as `given`."""
        given = f"const given = {json.dumps(values)};"
        return json.loads(engine.eval(f"JSON.stringify((() => {{ {given} return {call}; }})())"))

    return run


def answered(size, seed: int = 0, masks: bool = True):
    """An answer with a thumbnail and newline slots among its visual tokens, on a box that sticks out of the picture."""
    made = tiny_groundings.generation(size=size, seed=seed)
    view = View("grid", made.views[-1].index, (-7.0, -3.5, size[1] + 4.0, size[0] + 9.0))
    baseline = torch.rand(made.attention.shape[1], generator=torch.Generator().manual_seed(seed)) / 50
    told = replace(made, views=(view,), prompt_attention=baseline)
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    found = ground(told, picture, segmenter=None, nlp=tiny_groundings.nlp())
    code = (compressed(rectangle(size, 5, 5, 30, 40)),)
    return replace(found, masks=tuple(code for _ in found.phrases) if masks else found.masks), picture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("corners", [False, True])
def test_the_pages_points_are_cores(page, size, how, corners):
    found, picture = answered(size)
    data = explorer_data(found, picture)
    told = {"written": [start < end for start, end in data["tokens"]]}
    for aggregation in AGGREGATIONS:
        for phrase in found.phrases:
            options = {"normalization": how, "aggregation": aggregation, "remove_corners": corners}
            expected = phrase_points(found.generation, [phrase], **options)[0].tolist()
            maps = "normalized(decodeMaps(a), how, {...told, baseline: a.prompt_map && decodeMaps(a.prompt_map)[0]})"
            call = f"promptPoint({maps}, tokens, aggregation, a.views.at(-1), a.size, corners)"
            names = "const [a, how, told, tokens, aggregation, corners] = given;"
            given = (data, how, told, list(phrase.tokens), aggregation, not corners)
            assert page(f"(() => {{ {names} return {call}; }})()", *given) == expected


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    edges=st.tuples(*[st.floats(-9, 9)] * 4),
    levels=st.sampled_from([1, 2, 5, 1000]),
    seed=st.integers(0, 99),
)
def test_the_peak_is_that_of_the_whole_upsampled_map(page, h, w, size, edges, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels, h * w) / levels
    x0, y0, x1, y1 = edges
    box = [x0, y0, max(size[1] + x1, x0 + 1), max(size[0] + y1, y0 + 1)]
    view = {"h": h, "w": w, "index": list(range(h * w)), "box": box}
    inside = [x0 + 0.5 < size[1] and y0 + 0.5 < size[0], box[2] > 0.5 and box[3] > 0.5]
    columns = [x for x in range(size[1]) if box[0] <= x + 0.5 <= box[2]]
    rows = [y for y in range(size[0]) if box[1] <= y + 0.5 <= box[3]]
    assume(all(inside) and columns and rows)
    whole = np.array(page(f"Array.from(upsampled(given[0], given[1], {size[0]}, {size[1]}))", list(values), view))
    seen = whole.reshape(size)[np.ix_(rows, columns)]
    found = page("peakOf(given[0], given[1], given[2], given[3])", list(values), view, *size)
    assert found["value"] == pytest.approx(seen.max(), abs=1e-12)
    x, y = (int(each - 0.5) for each in found["point"])
    assert whole.reshape(size)[y, x] == pytest.approx(seen.max(), abs=1e-12) and x in columns and y in rows


def test_upsampling_equals_cores_resampling(page):
    found, picture = answered((60, 90))
    data, values = explorer_data(found, picture), found.generation.attention[2]
    expected = map_to_pixels(values[found.view.index], found.view, size=(60, 90)).flatten().tolist()
    call = "Array.from(upsampled(decodeMaps(given[0])[2], given[0].views.at(-1), 60, 90))"
    np.testing.assert_allclose(page(call, data), expected, atol=float(values.max()) / 30000)


def test_a_place_finds_its_cell_and_the_words_that_looked_there(page):
    found, picture = answered((60, 90))
    data = explorer_data(found, picture)
    for row, column in ((0, 0), (2, 3), (3, 5)):
        x0, y0, x1, y1 = found.view.cell(row, column)
        cell = page("cellAt(given[0], given[1], given[2])", data["views"][-1], (x0 + x1) / 2, (y0 + y1) / 2)
        assert cell == int(found.view.index[row, column])
    assert page("cellAt(given[0], -20, 5)", data["views"][-1]) is None
    shares = page("lookedAt(decodeMaps(given[0]), given[0].views.at(-1), given[1])", data, cell)
    attention = found.generation.attention
    seen = attention[:, found.view.index.flatten()]
    np.testing.assert_allclose(shares, (attention[:, cell] / seen.amax(1)).tolist(), atol=1e-3)


def test_the_same_words_of_another_tokenisation(page):
    spans, others = [[0, 3], [3, 8], [8, 8]], [[0, 2], [2, 5], [5, 8], [8, 8]]
    assert page("sameWords(given[0], [1], given[1])", spans, others) == [1, 2]
    assert page("sameWords(given[0], [2], given[1])", spans, others) == []


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_decoded_as_coco_encodes_them(page, size):
    mask = np.random.default_rng(1).random(size) < 0.3
    for each in (mask, np.zeros(size, bool), np.ones(size, bool), rectangle(size, 0, 3, 9, 20)):
        decoded = page("Array.from(decodeMask(given[0]))", compressed(each))
        assert np.array_equal(np.array(decoded, bool).reshape(size), each)
        for drawn in ((31, 200), (300, 17)):
            rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(drawn, size, strict=True))
            small = page(f"Array.from(decodeMask(given[0], {drawn[0]}, {drawn[1]}))", compressed(each))
            assert np.array_equal(np.array(small, bool).reshape(drawn), each[np.ix_(rows, columns)])


def test_nothing_of_a_hostile_answer_can_run_or_leave_its_place():
    evil = "a star</script><script>alert(1)</script><img src=x onerror=alert(1)> & \u2028 \u202eabc\u0301 🦊 done"
    made = grounding((60, 90), [("star", (5.5, 5.5), [rectangle((60, 90), 5, 5, 30, 40)])])
    odd = replace(made, generation=replace(made.generation, text=evil), options=GroundOptions(view="image"))
    text = explorer_page([explorer_data(odd, Image.new("RGB", (90, 60)), prompt=evil, title=evil)], title=evil)
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<img" not in text
    data = re.search(r'<script type="application/json" id="answers">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)["answers"][0]["text"] == evil and not set("<>&") & set(data)
    assert "innerHTML" not in text and "eval(" not in text


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else():
    found, picture = answered((60, 90))
    text = explorer_page([explorer_data(found, picture)])
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for kind in ("script", "style"):
        content = re.search(rf"<{kind}(?: type=\"module\")?>(.*?)</{kind}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://", text)


def test_positions_count_utf16_units():
    assert utf16_places("a🦊b") == [0, 1, 3, 4]
    text = "a🦊 star"
    places = utf16_places(text)
    units = text.encode("utf-16-le")
    assert units[2 * places[3] : 2 * places[7]].decode("utf-16-le") == "star"


def test_a_long_answer_stays_small(tmp_path):
    t, k = 100, 576
    made = tiny_groundings.generation(size=(480, 640), grid=(24, 24))
    attention = torch.rand(t, made.attention.shape[1])
    spans = torch.tensor([(min(i, 30), min(i + 1, 31)) for i in range(t)])
    long = replace(made, attention=attention, token_spans=spans, token_ids=torch.arange(t))
    found, _ = answered((60, 90))
    whole = replace(found, generation=long, image_size=(480, 640), masks=((),) * len(found.phrases))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    path = save_html([explorer_data(whole, noisy)], tmp_path / "deep" / "page.html")
    assert k <= attention.shape[1] and path.stat().st_size < 2_000_000


def test_what_cannot_be_explored_is_refused():
    found, picture = answered((60, 90))
    with pytest.raises(GroundingError, match="the picture is 30 x 40"):
        explorer_data(found, Image.new("RGB", (40, 30)))
    made = replace(found.generation, attention=found.generation.attention[:, :0], prompt_attention=None)
    slim = replace(found, generation=made)
    with pytest.raises(GroundingError, match="kept without maps"):
        explorer_data(slim, picture)
    with pytest.raises(GroundingError, match="no answer to explore"):
        explorer_page([])


def test_the_frame_holds_the_whole_page_and_is_shut_in():
    found, picture = answered((60, 90), masks=False)
    data = explorer_data(found, picture)
    frame = explorer_iframe([data])
    assert 'sandbox="allow-scripts"' in frame and "allow-same-origin" not in frame
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == explorer_page([data])
    assert all(phrase["masks"] == [] for phrase in data["phrases"])
