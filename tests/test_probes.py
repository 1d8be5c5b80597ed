"""Linear probes of the frozen features: the measure by hand, words that are planted, a run that is kept, its table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny_family import tiny_data

from analysis.encoders.probes import load_probes, probe_provenance, probe_table
from embedded.encoder_study import probes
from embedded.encoder_study.probes import WORDS, ProbeRecipe, average_precision, probe, probed_variants, run_probes
from embedded.scenes.pictures import TAGS, multi_hot

QUICK = ProbeRecipe(scenes=16, steps=3, batch=4)


def test_average_precision_is_the_mean_of_the_precision_at_the_hits():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert average_precision(scores, torch.tensor([0.0, 1.0, 1.0, 0.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(-scores, torch.tensor([0.0, 1.0, 0.0, 0.0])) == pytest.approx(1 / 4)


def test_words_in_a_single_cell_are_read_and_absent_ones_are_not(tmp_path):
    generator = torch.Generator().manual_seed(0)
    red, star = TAGS.index("red"), TAGS.index("star")
    words = torch.zeros(600, len(TAGS))
    for kind in WORDS.values():  # every word somewhere, so that each has a precision
        for name in kind:
            words[torch.randperm(600, generator=generator)[:120], TAGS.index(name)] = 1
    features = torch.randn(600, 9, 6, generator=generator)
    cells = torch.randint(9, (600,), generator=generator)
    features[torch.arange(600), cells, 2] += 8 * words[:, red]
    recipe = ProbeRecipe(steps=300, batch=64)
    found = probe(features[:400], words[:400], features[400:], words[400:], recipe, state=tmp_path / "state.tmp.pt")
    assert found["chance"]["colour"] == pytest.approx(0.2, abs=0.05)
    colours = len(WORDS["colour"])
    planted = found["mean_average_precision"]["colour"] * colours - found["chance"]["colour"] * (colours - 1)
    assert planted > 0.85  # red is found, the other colours are at chance
    assert abs(found["mean_average_precision"]["category"] - found["chance"]["category"]) < 0.1
    assert words[:, star].any() and not (tmp_path / "state.tmp.pt").exists()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("family"))


def test_probes_are_kept_and_repeated_for_another_recipe_only(family, tmp_path):
    file = run_probes(tmp_path, family, ["clip"], recipe=QUICK)
    before = json.loads(file.read_text())
    run_probes(tmp_path, family, ["clip", "sd_b3", "clip_dino"], recipe=QUICK)
    rows = json.loads(file.read_text())
    assert rows[:1] == before and [row["variant"] for row in rows] == ["clip", "sd_b3", "clip_dino"]
    assert rows[0]["held_out_scenes"] == len(family.held_out) == 8
    wanted = multi_hot([family.tags[number] for number in family.held_out])
    share = wanted[:, [TAGS.index(name) for name in WORDS["ground"]]]
    assert rows[0]["chance"]["ground"] == pytest.approx(share[:, share.any(0)].mean().item(), abs=1e-4)
    run_probes(tmp_path, family, ["clip"], recipe=replace(QUICK, steps=4))
    assert [row["recipe"]["steps"] for row in json.loads(file.read_text())] == [4]


def test_what_another_process_probed_meanwhile_is_kept(family, tmp_path, monkeypatch):
    real = probes.probe

    def probe_while_another_does(*arguments, **options):
        monkeypatch.setattr(probes, "probe", real)
        run_probes(tmp_path, family, ["sd_b3"], recipe=QUICK)
        return real(*arguments, **options)

    monkeypatch.setattr(probes, "probe", probe_while_another_does)
    file = run_probes(tmp_path, family, ["clip"], recipe=QUICK)
    assert [row["variant"] for row in json.loads(file.read_text())] == ["sd_b3", "clip"]


def test_the_table_has_a_row_for_every_frozen_encoder_and_one_for_chance(tmp_path):
    row = {"recipe": {"scenes": 16}, "held_out_scenes": 8, "chance": {"colour": 0.25}}
    probes = [{**row, "variant": "sd", "mean_average_precision": {"colour": 0.5}}]
    source = tmp_path / "losses.json"
    source.write_text(json.dumps({"runs": [], "loss_bin": 10, "probes": probes}))
    table = probe_table(load_probes(source), 5).set_index("label")
    assert table.index.tolist() == ["LLaVA, CLIP", "LLaVA, DINO", "LLaVA, CLIP + DINO", "DiffLMM, SD", "chance"]
    assert table.loc["DiffLMM, SD", "colour"] == 50 and table.loc["chance", "colour"] == 25
    assert table.loc["LLaVA, CLIP"].isna().all() and "scenes=16" in probe_provenance(load_probes(source)).describe()
    assert len(probe_table(load_probes(source), 6)) == 7 + 1
    source.write_text(json.dumps({"runs": [], "loss_bin": 10}))
    assert probe_table(load_probes(source), 5).drop(columns="label").isna().all(axis=None)
    assert "none were run" in probe_provenance(load_probes(source)).describe()


def test_shipped_record_holds_every_probe():
    for number, record in ((5, ""), (6, ""), (6, "unaligned")):
        assert probe_table(load_probes(record), number).notna().all(axis=None)
    assert set(probed_variants()) >= {"clip", "dino", "sd", "sd_t0", "sd_b4"}
