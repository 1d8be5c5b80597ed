"""Tables 5 and 6 from small records: numbers checked by hand, gaps said, figures read back, and a real tiny run."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny_family import tiny_data

from analysis.encoders.figures import plot_noise_and_blocks, plot_variant_curves, plot_variant_losses, table_plots
from analysis.encoders.losses import load_stage_losses
from analysis.encoders.probes import probe_table
from analysis.encoders.reading import reading
from analysis.encoders.rows import TABLES, describe_variants, find_table, paper_losses
from analysis.encoders.tables import (
    chance_of_order,
    loss_results,
    loss_table,
    paired_differences,
    rank_agreement,
    seed_table,
    spearman,
)
from analysis.figures import drawn_numbers
from analysis.paper import paper_table
from analysis.tables import Table
from analysis.training.losses import converged_loss, load_losses
from core.errors import GroundingError
from embedded.encoder_study.experiments import record, run_folder, run_stage_one
from embedded.encoder_study.two_stages import StageRecipe
from embedded.encoder_study.variants import TABLE5, TABLE6

RECIPE = {"stage": 1, "scenes": 100, "epochs": 1.0, "batch": 4, "learning_rate": 2e-3}
HELD = {  # held-out losses by seed; the training losses below are 0.1 lower
    "clip": (1.0, 1.2, 1.1), "dino": (1.5, 1.6, 1.7), "clip_dino": (1.1, 1.1, 1.2), "sd": (1.4, 1.6, 1.5),
    "sd_pe": (1.3, 1.5, 1.4), "sd_pe_ic": (1.2, 1.4, 1.3), "sd_clip": (0.9, 1.1, 1.0),
}  # fmt: skip
STEPS6 = {"sd": 1.5, "sd_t0": 1.6, "sd_t200": 1.55, "sd_t300": 1.7, "sd_b1": 1.52, "sd_b3": 1.8, "sd_b4": 2.0}


def run(variant, seed, held_out, *, losses=None, steps=25, **recipe):
    losses = [4.0, 2.0, held_out - 0.1] if losses is None else losses
    result = {"variant": variant, "seed": seed, "recipe": RECIPE | recipe, "steps": steps, "held_out_loss": held_out}
    return result | {"losses": losses}


def write(path, runs, **more):
    versions = {"torch": "2.15.0", "transformers": "5.23.0", "diffusers": "0.42.1", "processor": "x86_64"}
    path.write_text(json.dumps({"runs": runs, "loss_bin": 10, **versions, **more}))
    return path


def runs5(*, without=(), seeds=3):
    return [run(name, seed, held[seed]) for name, held in HELD.items() if name not in without for seed in range(seeds)]


@pytest.fixture
def losses5(tmp_path):
    return load_stage_losses(write(tmp_path / "losses.json", runs5()))


@pytest.fixture
def losses6(tmp_path):
    runs = [run(name, seed, value + seed / 100) for name, value in STEPS6.items() for seed in (0, 1)]
    return load_stage_losses(write(tmp_path / "losses6.json", runs))


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# ---- reading a record


def test_the_converged_loss_weighs_bins_by_their_steps(tmp_path):
    # 25 steps in bins of 10, 10 and 5: the last tenth rounds to 2 steps, both of the last bin
    short = load_stage_losses(write(tmp_path / "a.json", [run("clip", 0, 1.0, losses=[3.0, 2.0, 1.0])]))
    assert short.runs["training_loss"].tolist() == [1.0]
    long = [float(number) for number in range(22)]  # 218 steps: the last 22 are 8 of the last bin, 10, and 4
    found = load_stage_losses(write(tmp_path / "b.json", [run("clip", 0, 1.0, losses=long, steps=218)]))
    assert found.runs["training_loss"].item() == pytest.approx((8 * 21 + 10 * 20 + 4 * 19) / 22)
    assert found.curves["step"].tolist()[:2] == [5.5, 15.5] and found.curves["step"].iloc[-1] == 214.5


def test_only_the_asked_stage_is_read(tmp_path):
    file = write(tmp_path / "a.json", [run("clip", 0, 1.0), run("clip", 0, 0.5, stage=2)])
    assert load_stage_losses(file).runs["held_out_loss"].tolist() == [1.0]
    assert load_stage_losses(file, stage=2).runs["held_out_loss"].tolist() == [0.5]


def test_unusable_sources_say_what_to_do(tmp_path):
    with pytest.raises(GroundingError, match=r"absent.* does not exist; `make embedded`"):
        load_stage_losses(tmp_path / "absent")
    with pytest.raises(GroundingError, match=r"no finished run under .* `make embedded`"):
        load_stage_losses(tmp_path)
    with pytest.raises(GroundingError, match=r"holds no finished run of stage 1; `make embedded`"):
        load_stage_losses(write(tmp_path / "none.json", []))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(GroundingError, match="is not JSON"):
        load_stage_losses(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(GroundingError, match="is no record of losses"):
        load_stage_losses(tmp_path / "other.json")
    with pytest.raises(GroundingError, match="clip, seed 0, has 3 mean losses of 10 steps for 41 steps"):
        load_stage_losses(write(tmp_path / "cut.json", [run("clip", 0, 1.0, steps=41)]))


def test_runs_of_two_recipes_are_not_put_in_one_table(tmp_path):
    file = write(tmp_path / "a.json", [run("clip", 0, 1.0), run("dino", 0, 1.0, scenes=50)])
    with pytest.raises(GroundingError, match="runs of 2 recipes, which do not compare"):
        load_stage_losses(file)


def test_provenance_names_recipe_seeds_and_versions(losses5):
    told = losses5.provenance().describe()
    for part in ("100 images", "steps=25", "learning_rate=0.002", "seeds='0, 1, 2'", "torch=2.15.0", "stage 1"):
        assert part in told


# ---- tables


def test_rows_are_the_papers_in_its_order():
    published = paper_table(5)
    ours, paper = describe_variants(5), paper_losses(5)
    assert ours["PE"].tolist() == published["positional_encoding"].tolist() == paper["PE"].tolist()
    assert ours["IC"].tolist() == published["implicit_captioner"].fillna("–").tolist() == paper["IC"].tolist()
    assert [name.split(",")[0] for name in ours["method"]] == published["model"].str.removesuffix("-1.5").tolist()
    assert ours["variant"].tolist() == [variant.name for variant in TABLE5] == paper["variant"].tolist()
    assert paper["training_loss"].tolist() == published["pretrain_loss"].tolist()
    assert ours["label"].iloc[-1] == "DiffLMM, SD + CLIP + PE + IC"
    assert paper["label"].iloc[-2] == "DiffLMM, SD-1.5 + PE + IC"
    six, published = paper_losses(6), paper_table(6)
    assert six["variant"].tolist() == [variant.name for variant in TABLE6]
    assert (
        six[["noise_step", "up_block"]].to_numpy().tolist()
        == published[["noise_step", "feature_block"]].to_numpy().tolist()
    )
    assert six["training_loss"].tolist() == published["pretrain_loss"].tolist()


def test_a_table_says_what_it_asks_and_compares_with():
    assert find_table(5).reference_label == "LLaVA, CLIP" and find_table(6).reference_label == "step 100, block 2"
    for number, table in TABLES.items():
        heading, text = table.opening.split("\n\n")
        assert table.number == number and heading == f"## Table {number}: {table.question}" and heading.endswith("?")
        assert text.endswith(f"This is Table {number} of the paper with the small models of this repository, "
                             "trained on its own scenes.")  # fmt: skip
        assert table.name.startswith(f"table{number}_")
    for varied, (fixed, at) in find_table(6).panels.items():
        rows = describe_variants(6)
        assert rows.loc[rows[fixed] == at, varied].is_unique and (rows[fixed] == at).sum() == 4


def test_another_table_is_refused_everywhere(losses5):
    parts = (loss_table, seed_table, paired_differences, rank_agreement, reading, loss_results)
    calls = [lambda part=part: part(losses5, 7) for part in parts]
    calls += [lambda: find_table(7), lambda: paper_losses(7), lambda: probe_table([], 7)]
    for call in calls:
        with pytest.raises(GroundingError, match="stand in tables 5 and 6, not in 7"):
            call()


def test_the_summary_has_every_variant_beside_the_same_one_of_the_paper(losses5):
    found, table = loss_results(losses5, 5), loss_table(losses5, 5).dropna(subset=["training_loss"])
    assert [each.method for each in found] == table["label"].tolist() and len(found) > 1
    assert [each.interval.value for each in found] == table["training_loss"].tolist()
    assert {each.item for each in found} == {"Table 5"} and found[0].paper == 2.027


def test_mean_and_spread_over_seeds(losses5):
    row = loss_table(losses5, 5).set_index("variant").loc["clip"]
    assert row["held_out_loss"] == pytest.approx(1.1) and row["held_out_loss_sd"] == pytest.approx(0.1)
    assert (row["held_out_loss_min"], row["held_out_loss_max"]) == (1.0, 1.2)
    assert row["training_loss"] == pytest.approx(1.0) and row["training_loss_max"] == pytest.approx(1.1)
    assert row["seeds"] == "3 (0, 1, 2)"
    single = seed_table(losses5, 5).set_index("variant").loc["dino"]
    assert [single[f"held_out_loss, seed {seed}"] for seed in range(3)] == [1.5, 1.6, 1.7]


def test_differences_are_paired_over_seeds(losses5):
    rows = paired_differences(losses5, 5).set_index("variant")
    assert "clip" not in rows.index and len(rows) == 6
    # clip_dino minus clip: +0.1, -0.1, +0.1
    assert rows.loc["clip_dino", "held_out_loss"] == pytest.approx(1 / 30)
    sd = np.std([0.1, -0.1, 0.1], ddof=1)
    assert rows.loc["clip_dino", "held_out_loss_sd"] == pytest.approx(sd)
    assert rows.loc["clip_dino", "held_out_loss_high"] == pytest.approx(1 / 30 + 4.303 * sd / np.sqrt(3))
    # sd_clip minus clip is -0.1 for every seed although the seeds themselves lie 0.2 apart
    assert rows.loc["sd_clip", "held_out_loss_high"] == pytest.approx(-0.1)
    assert rows["pairs"].tolist() == [3] * 6


def test_only_seeds_of_both_make_a_pair(tmp_path):
    file = write(tmp_path / "a.json", [run("clip", 0, 1.0), run("clip", 1, 1.2), run("sd", 1, 1.5), run("sd", 2, 9.0)])
    row = paired_differences(load_stage_losses(file), 5).set_index("variant").loc["sd"]
    assert row["pairs"] == 1 and row["held_out_loss"] == pytest.approx(0.3) and np.isnan(row["held_out_loss_low"])


def test_variants_that_were_not_run_are_rows_that_say_so(tmp_path):
    losses = load_stage_losses(write(tmp_path / "a.json", runs5(without=("dino", "sd"), seeds=1)))
    table = loss_table(losses, 5)
    assert len(table) == 7
    missing = table.set_index("variant").loc["dino"]
    assert missing["seeds"] == "not run" and np.isnan(missing["training_loss"])
    assert np.isnan(table.set_index("variant").loc["clip", "held_out_loss_sd"])
    assert rank_agreement(losses, 5)["rows"].tolist() == [5, 5]
    shown = Table(table.drop(columns=["label", "variant"]), "t", losses.provenance(), paper_losses(5), decimals=3)
    assert "not run" in shown.to_html() and "2.403" in shown.to_html()
    told = reading(losses, 5)
    assert told.startswith("Not run: LLaVA, DINO; DiffLMM, SD.")
    assert "With a single seed, nothing can be said of differences" in told
    labels = drawn_numbers(plot_variant_losses(losses, 5))["artist"]
    assert "LLaVA, DINO" not in set(labels) and "LLaVA-1.5, DINOv2" in set(labels)


def test_a_table_of_another_tables_runs_is_empty_and_says_so(tmp_path):
    losses = load_stage_losses(write(tmp_path / "a.json", [run("sd_b4", 0, 1.0)]))
    assert (loss_table(losses, 5)["seeds"] == "not run").all()
    assert reading(losses, 5).endswith("There is nothing to read from this table yet.")
    assert len(paired_differences(losses, 5)) == 6
    agreement = rank_agreement(losses, 5)
    assert agreement["rows"].tolist() == [0, 0] and agreement["spearman"].isna().all()
    for number in (5, 6):
        plot_variant_losses(losses, number).canvas.draw()
        plot_variant_curves(losses, number).canvas.draw()
    plot_noise_and_blocks(losses).canvas.draw()


# ---- rank agreement


def test_spearman_is_the_correlation_of_ranks():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([3, 2, 1], [10, 20, 30]) == pytest.approx(-1)
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)) with d = (0, 1, -1, 0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert np.isnan(spearman([1, 2], [1, 2])) and np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_chance_counts_the_orders_that_agree_as_well():
    values = np.array([0.3, 0.1, 0.2])
    assert chance_of_order(3, 1.0, values) == pytest.approx(1 / 6)
    assert chance_of_order(3, 0.5, values) == pytest.approx(3 / 6)
    assert chance_of_order(3, -1.0, values) == 1.0
    assert np.isnan(chance_of_order(2, float("nan"), values[:2]))


def test_agreement_of_the_same_order_is_full(tmp_path):
    published = paper_losses(5)
    runs = [run(row.variant, 0, row.training_loss) for row in published.itertuples()]
    row = rank_agreement(load_stage_losses(write(tmp_path / "a.json", runs)), 5).iloc[1]
    assert row["rows"] == 7 and row["spearman"] == pytest.approx(1)
    assert row["chance"] == pytest.approx(100 / 5040)


def test_single_seeds_bound_the_agreement(losses5):
    row = rank_agreement(losses5, 5).iloc[1]
    assert row["spearman_min"] <= row["spearman"] <= row["spearman_max"]


# ---- in words


def test_the_reading_tells_apart_what_the_seeds_do(losses5):
    told = reading(losses5, 5)
    assert "lowest for DiffLMM, SD + CLIP + PE + IC (1.000), highest for LLaVA, DINO (1.600)" in told
    lines = told.splitlines()
    apart = [line for line in lines if line.strip().startswith("not told apart")]
    assert len(apart) == 2 and all("LLaVA, CLIP + DINO (+0.033" in line for line in apart)
    assert "over 7 rows" in told and "no reproduction" in told and "6 comparisons, not corrected" in told


def test_the_reading_of_table_6_names_the_lowest_step_and_block(losses6):
    told = reading(losses6, 6)
    assert "noise steps 0, 100, 200, 300 at up block 2, the mean is lowest at 100" in told
    assert "up blocks 1, 2, 3, 4 at noise step 100, the mean is lowest at 2" in told
    assert told.count("in the paper at 100") == 1 and told.count("in the paper at 2.") == 1


# ---- figures


def test_dots_are_the_runs_and_their_means(losses5):
    figure = plot_variant_losses(losses5, 5)
    training, held_out, paper = figure.axes
    lines = {line.get_label(): line.get_xdata() for line in held_out.lines}
    np.testing.assert_allclose(lines["LLaVA, CLIP: seeds"], [1.0, 1.2, 1.1])
    np.testing.assert_allclose(lines["LLaVA, CLIP"], [1.1])
    assert [line.get_xdata()[0] for line in paper.lines] == paper_table(5)["pretrain_loss"].tolist()
    assert training.get_xlim() == held_out.get_xlim() != paper.get_xlim()
    assert paper.get_title(loc="left").startswith("published: paper, Table 5")


def test_curves_are_means_over_seeds(losses5):
    left, right = plot_variant_curves(losses5, 5).axes
    clip = next(line for line in left.lines if line.get_label() == "LLaVA, CLIP")
    np.testing.assert_allclose(clip.get_ydata(), [4.0, 2.0, 1.0])
    np.testing.assert_allclose(clip.get_xdata(), [5.5, 15.5, 23.0])
    assert min(line.get_xdata().min() for line in right.lines) == 15.5
    assert len({line.get_color() for line in left.lines}) == 7


def test_noise_and_blocks_have_the_papers_below_on_other_axes(losses6):
    (noise, block), (paper_noise, paper_block) = np.array(plot_noise_and_blocks(losses6).axes).reshape(2, 2)
    held = {line.get_label(): line for line in noise.lines}["loss on held-out scenes"]
    assert held.get_xdata().tolist() == [0, 100, 200, 300]
    np.testing.assert_allclose(held.get_ydata(), [1.605, 1.505, 1.555, 1.705])
    held = {line.get_label(): line for line in block.lines}["loss on held-out scenes"]
    np.testing.assert_allclose(held.get_ydata(), [1.525, 1.505, 1.805, 2.005])
    assert paper_noise.lines[0].get_ydata().tolist() == [2.417, 2.384, 2.395, 2.457]
    assert paper_block.lines[0].get_ydata().tolist() == [2.400, 2.384, 2.465, 2.625]
    assert noise.get_ylim() != paper_noise.get_ylim()


def test_a_tables_figures_go_by_the_names_of_their_files(losses6):
    assert list(table_plots(5)) == ["table5_losses", "table5_curves"]
    figures = {name: plot(losses6, 6) for name, plot in table_plots(6).items()}
    assert list(figures) == ["table6_losses", "table6_noise_and_blocks", "table6_curves"]
    drawn = {name: drawn_numbers(figure) for name, figure in figures.items()}
    pd.testing.assert_frame_equal(drawn["table6_noise_and_blocks"], drawn_numbers(plot_noise_and_blocks(losses6)))
    assert {"step 100, block 4"} <= set(drawn["table6_losses"]["artist"]) & set(drawn["table6_curves"]["artist"])


# ---- a real run, recorded and read


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Stage 1 of three variants on tiny random parts."""
    folder = tmp_path_factory.mktemp("work")
    data = tiny_data(tmp_path_factory.mktemp("family"))
    recipe = StageRecipe(1, scenes=16, epochs=3.0, batch=4)
    run_stage_one(folder, data, [("clip", 0), ("clip", 1), ("dino", 0), ("sd", 0), ("sd", 1)], recipe=recipe)
    return folder


def test_the_record_and_the_work_folder_tell_the_same(work, tmp_path):
    live, recorded = load_stage_losses(work), load_stage_losses(record(work, tmp_path / "losses.json"))
    pd.testing.assert_frame_equal(live.runs, recorded.runs)
    pd.testing.assert_frame_equal(live.curves, recorded.curves)
    assert live.recipe == recorded.recipe and live.recipe["steps"] == 12


def test_a_real_run_fills_its_rows(work):
    losses = load_stage_losses(work).of(find_table(5).variants)
    table = loss_table(losses, 5).set_index("variant")
    assert table["seeds"].tolist() == ["2 (0, 1)", "1 (0)", "not run", "2 (0, 1)", "not run", "not run", "not run"]
    exact = converged_loss(load_losses({"sd": run_folder(work, "sd", 1, 1)}))["loss"].item()  # of the last step alone
    seen = losses.runs.set_index(["variant", "seed"]).loc[("sd", 1)]
    logged = load_losses({"sd": run_folder(work, "sd", 1, 1)})["loss"].tolist()
    assert exact == logged[-1] and seen["training_loss"] == pytest.approx(np.mean(logged[-2:]), abs=1e-4)
    result = json.loads((run_folder(work, "sd", 1, 1) / "result.json").read_text())
    assert seen["held_out_loss"] == result["held_out_loss"]
    assert "Paired with LLaVA, CLIP over 2 seeds" in reading(losses, 5)


@pytest.mark.parametrize(("source", "told"), [("", "up block 2 is aligned"), ("unaligned", "no block aligned")])
def test_table_6_of_both_u_nets_is_shipped_whole_and_says_which_blocks_were_aligned(source, told):
    losses = load_stage_losses(source).of(find_table(6).variants)
    assert set(losses.runs["variant"]) == {variant.name for variant in find_table(6).variants}
    assert told in losses.versions["encoders"]


def test_both_stages_of_every_row_of_table_5_are_shipped():
    for stage in (1, 2):
        losses = load_stage_losses(stage=stage).of(find_table(5).variants)
        assert set(losses.runs["variant"]) == {variant.name for variant in find_table(5).variants}
