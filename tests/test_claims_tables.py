"""The claims' intervals and their laws, tables from small records by hand, sentences, figures read back."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis.claims.cards import TOLD, claims_section, write_sections
from analysis.claims.figures import plot_example, plot_norms
from analysis.claims.intervals import Counts, paired_difference, pooled_share
from analysis.claims.reading import encoder_reading, equation3_reading, places_reading, sink_reading, verdict
from analysis.claims.record import Claims, example_picture, label, layer_norms, load_claims
from analysis.claims.tables import claim_results, encoder_table, equation3_table, places_table, sink_table
from analysis.figures import drawn_numbers
from analysis.scoring.metrics import difference_interval, ratio_interval
from core.errors import GroundingError
from core.weights import FOLDER
from embedded.cards import _write
from embedded.claims.measure import FIELDS, claims_settings
from embedded.claims.record import add_model
from embedded.encoder_study.experiments import environment

IMAGES = 30


def counts(share, *, seeds=3, images=200, spread=0.0, rng=0):
    """Hits of about four phrases an image, with a share that differs between the seeds."""
    rng = np.random.default_rng(rng)
    whole = rng.integers(2, 7, size=(seeds, images))
    shares = np.clip(share + spread * rng.standard_normal((seeds, 1)), 0.02, 0.98)
    return Counts(rng.binomial(whole, np.broadcast_to(shares, whole.shape)), whole, tuple(range(seeds)))


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# ---- laws of the intervals


def test_a_model_against_itself_is_zero_without_width():
    for seeds in (1, 2, 3):
        own = counts(0.5, seeds=seeds, spread=0.2)
        found = paired_difference(own, own)
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_difference_turns_its_sign_with_the_order():
    x, y = counts(0.6, rng=1), counts(0.5, rng=2)
    there, back = paired_difference(x, y), paired_difference(y, x)
    assert back.value == pytest.approx(-there.value)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_one_seed_is_the_paired_bootstrap_over_images():
    x, y = counts(0.6, seeds=1, rng=1), counts(0.5, seeds=1, rng=2)
    ours = paired_difference(x, y)
    plain = difference_interval((y.part[0], x.part[0]), (y.whole[0], x.whole[0]))
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))
    single, plain = pooled_share(x), ratio_interval(x.part[0], x.whole[0])
    assert (single.value, single.low, single.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_order_of_scenes_and_seeds_does_not_matter():
    x, y = counts(0.6, rng=1, spread=0.05), counts(0.5, rng=2, spread=0.05)
    order = np.random.default_rng(0).permutation(200)
    shuffled = [Counts(each.part[::-1, order], each.whole[::-1, order], each.seeds[::-1]) for each in (x, y)]
    first, second = paired_difference(x, y, draws=8000), paired_difference(*shuffled, draws=8000)
    assert second.value == pytest.approx(first.value, abs=1e-12)
    assert (second.low, second.high) == pytest.approx((first.low, first.high), abs=0.006)


def test_more_seeds_and_more_images_narrow():
    def width(seeds, images):
        found = [
            paired_difference(
                counts(0.6, seeds=seeds, images=images, spread=0.1, rng=rng),
                counts(0.5, seeds=seeds, images=images, spread=0.1, rng=100 + rng),
                draws=500,
            )
            for rng in range(12)
        ]
        return np.mean([each.high - each.low for each in found])

    assert width(12, 100) < 0.8 * width(4, 100)
    assert width(4, 400) < width(4, 25)


def test_the_spread_over_few_seeds_is_not_understated():
    """With many images the draws' variance is that of a mean of n seeds, s^2 / n, which n draws would make smaller."""
    whole = np.full((3, 4000), 100)
    shares = np.array([0.4, 0.5, 0.6])
    part = np.round(whole * shares[:, None]).astype(int)
    found = pooled_share(Counts(part, whole, (0, 1, 2)), draws=4000, level=0.999)
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))  # both draws of one seed
    expected = np.std(shares, ddof=1) / np.sqrt(3)
    two = np.array([(a + b) / 2 for a in shares for b in shares])  # every draw of two of the three
    assert two.std() == pytest.approx(expected)


def test_only_seeds_of_both_are_paired():
    x, y = counts(0.6, seeds=3, rng=1), counts(0.5, seeds=2, rng=2)
    assert paired_difference(x, y).value == pytest.approx(paired_difference(x.of((0, 1)), y).value)
    with pytest.raises(GroundingError, match="have none in common"):
        paired_difference(Counts(x.part[2:], x.whole[2:], (2,)), y)
    with pytest.raises(GroundingError, match="200 and 50 images cannot be paired"):
        paired_difference(x, counts(0.5, images=50))
    with pytest.raises(GroundingError, match=r"must be \[seeds, images\]"):
        Counts(x.part, x.whole, (0, 1))


def test_nothing_counted_is_no_number():
    assert np.isnan(pooled_share(Counts(np.zeros((1, 5)), np.zeros((1, 5)), (0,))).value)


# ---- a record by hand


def run(hits, *, raw=None, tokens=None, registers=0, places_right=1, prompt="Describe."):
    """A model that names 4 phrases a scene and hits so many, without equation 3 `raw`."""
    fields = {name: [0] * IMAGES for name in FIELDS}
    fields |= {"phrases": [4] * IMAGES, "hits": [hits] * IMAGES, "raw_hits": [hits if raw is None else raw] * IMAGES}
    fields |= {"said": [2] * IMAGES, "true": [2] * IMAGES, "right": [1] * IMAGES, "places": [2] * IMAGES}
    fields |= {"places_right": [places_right] * IMAGES, "tokens": tokens or list(range(80, 80 + IMAGES))}
    fields |= {"visual": [0.5] * IMAGES, "top1": [0.2] * IMAGES, "top5": [0.4] * IMAGES, "ratio": [8.0] * IMAGES}
    fields |= {"cell": [3] * IMAGES, "off_objects": [1] * IMAGES, "steady": [0.9] * IMAGES}
    fields |= {"registers": [registers] * IMAGES, "registered": [0.2 * registers] * IMAGES}
    fields |= {"raw_on_register": [2 * registers] * IMAGES}
    grid = [[0.0, 0.1], [0.2, 0.3]]
    example = {"index": 1, "text": "a moon", "phrase": "a moon", "mean": grid, "raw": grid, "normalised": grid}
    example |= {"raw_point": [1.5, 2.5], "point": [3.5, 2.5], "box": [0.0, 0.0, 40.0, 30.0]}
    layers = {"largest": [1.0, 4.0], "first": [1.0, 2.0], "first_token": [0.25], "word": [0.3], "visual": [0.5]}
    return {"prompt": prompt, "scenes": fields, "layers": layers, "example": example}


@pytest.fixture
def claims(tmp_path):
    settings = claims_settings(scenes=IMAGES)
    file = tmp_path / "claims.json"
    for seed in (0, 1, 2):
        add_model("clip", seed, run(2), settings, file=file)
        add_model("sd_clip", seed, run(3, places_right=2), settings, file=file)
        add_model("sd", seed, run(1, places_right=0), settings, file=file)
    add_model("sd_pe", 1, run(2), settings, file=file)
    add_model("long_picture_first", 0, run(3, raw=1, registers=1, prompt=""), settings, file=file)
    return load_claims(file)


def test_encoders_are_compared_with_clip_over_common_seeds(claims):
    table = encoder_table(claims).set_index("method")
    assert table.loc[label("sd_clip"), "difference"] == pytest.approx(25)
    assert table.loc[label("sd_clip"), "told apart"] == "higher"
    assert table.loc[label("sd"), "difference"] == pytest.approx(-25)
    assert table.loc[label("sd_pe"), ["difference", "seeds"]].tolist() == [0, "1 (1)"]
    assert table.loc[label("sd"), "named (precision/recall)"] == "50 / 50 against 50 / 50"
    assert len(table) == 3
    told = encoder_reading(claims).splitlines()
    assert "reproduced, 25.0 [25.0, 25.0] percentage points (seeds: 3 (0, 1, 2))." in told[-1]
    assert "SD points better than LLaVA, CLIP: refuted at this scale" in told[0] and "not told apart" in told[1]


def test_sinks_and_equation_3_by_length(claims):
    sinks = sink_table(claims).set_index("method")
    row = sinks.loc[label("long_picture_first")]
    assert row[["answers with registers", "phrases on them", "with eq. 3", "same cell"]].tolist() == [100, 50, 0, 100]
    assert row[["on first token", "norm ratio", "cell ratio"]].tolist() == [25, 4, 8]
    assert sinks.loc[label("clip"), "answers with registers"] == 0
    assert "do not arise in LLaVA, CLIP" in sink_reading(claims)
    assert "tokens arise in LLaVA, long answers, picture first: in 100 %" in sink_reading(claims)
    table = equation3_table(claims)
    ours = table[table["method"] == label("long_picture_first")].set_index("answers")
    assert ours["phrases"].tolist() == [120, 40, 40, 40] and ours["difference"].tolist() == pytest.approx([50] * 4)
    assert ours["tokens"].tolist() == ["80 to 109", "80 to 89", "90 to 99", "100 to 109"]
    assert "picture first: reproduced, 50.0 [50.0, 50.0]" in equation3_reading(claims)


def test_places_are_told_against_the_bar(claims):
    table = places_table(claims).set_index("method")
    assert table.loc[label("sd_clip"), ["right", "told"]].tolist() == [100, 180]
    told = places_reading(claims)
    assert f"{label('sd_clip')} tells 100.0 [100.0, 100.0] % of 180 places right: 70 % reached." in told
    assert f"{label('clip')} tells 50.0" in told and "70 % missed" in told
    results = claim_results(claims)
    assert {each.item for each in results} == {"beyond"} and len(results) == 3 + 5 + 5


def test_cards_tell_the_claims_once_and_are_measured_again_without_losing_them(claims, tmp_path):
    for card in TOLD:
        (tmp_path / card).mkdir()
        _write(tmp_path / card, f"# {card}\n\n**Measured** 1\n", {})
    for _ in range(2):
        cards = write_sections(tmp_path, claims)
    assert [card.read_text().count("**The paper's claims**") for card in cards] == [1, 1, 1]
    text = (tmp_path / "difflmm" / "README.md").read_text()
    assert text.startswith("# difflmm\n\n**Measured** 1\n\n<!-- claims")
    for reading in (encoder_reading(claims), places_reading(claims.of(["sd_clip"]))):
        assert all(f"- {line}\n" in text for line in reading.splitlines())
    assert label("clip") + " tells" not in text
    assert "picture first: reproduced, 50.0" in (tmp_path / "llava" / "README.md").read_text()
    _write(tmp_path / "difflmm", "# difflmm\n\n**Measured** 2\n", {})
    assert (tmp_path / "difflmm" / "README.md").read_text() == text.replace("**Measured** 1", "**Measured** 2")


def test_the_shipped_cards_tell_what_the_shipped_record_says():
    claims = load_claims()
    for card in TOLD:
        assert claims_section(card, claims) in (FOLDER / card / "README.md").read_text(), (
            "python -m analysis.claims.cards"
        )


def test_the_provenance_names_every_models_own_prompt(claims):
    settings = claims.provenance().settings
    assert (settings["prompt"], settings["prompt of long_picture_first"]) == ("Describe.", "(none)")
    assert not any(f"prompt of {name}" in settings for name in ("clip", "sd", "sd_clip", "sd_pe"))
    assert Claims(claims.settings, {}).provenance().settings["prompt"] == ""


def test_the_provenance_names_all_versions_that_models_were_measured_with(claims):
    assert claims.provenance().settings["torch"] == environment()["torch"]
    other = {**claims.models["sd"][0], "versions": {**environment(), "torch": "1.0"}}
    mixed = Claims(claims.settings, {**claims.models, "sd": {0: other}}).provenance().settings
    assert mixed["torch"] == f"1.0, {environment()['torch']}"
    assert mixed["transformers"] == environment()["transformers"]


def test_verdicts():
    assert [verdict(*ends) for ends in ((0.1, 2.0), (-2.0, -0.1), (-1.0, 1.0), (0.0, 0.0))] == [
        "reproduced", "refuted at this scale", "not told apart", "not told apart",
    ]  # fmt: skip


def test_the_figures_show_the_recorded_maps(claims):
    example = claims.models["clip"][0]["example"]
    figure = plot_example(example_picture(claims, "clip"), example, "CLIP")
    drawn = drawn_numbers(figure)
    maps = drawn[drawn["kind"] == "map"]
    assert maps.groupby("axes", sort=False)["value"].apply(list).tolist() == [[0.0, 0.1, 0.2, 0.3]] * 3
    points = drawn[drawn["artist"] == "prompt point"][["x", "y"]].to_numpy().tolist()
    assert points == [[1.5, 2.5], [3.5, 2.5]]
    axes = plot_norms(layer_norms(claims))
    assert axes.lines[0].get_ydata().tolist() == [1.0, 4.0] and len(axes.lines) == 5


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(GroundingError, match=r"absent.json' does not exist; `python -m embedded.claims`"):
        load_claims(tmp_path / "absent.json")
    for content, said in (("{", "is not JSON"), (json.dumps({"runs": []}), "is no record of the claims")):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(GroundingError, match=said):
            load_claims(tmp_path / "other.json")
