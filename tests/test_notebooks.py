"""The notebooks keep the house rules, and from the smoke profile they write what they promise."""

from __future__ import annotations

import ast
import re
from dataclasses import fields

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from tiny_coco import grounding, rectangle

from analysis.encoders.rows import TABLES
from analysis.gcg.settings import GcgSettings
from analysis.paper import paper_table
from analysis.presets import PresetSettings
from analysis.report.__main__ import main
from analysis.report.parameters import declared_parameters, parameter_problems
from analysis.report.profiles import NOTEBOOKS, profile_jobs
from analysis.settings import Settings, bundled_photographs, describe_run, find_pictures
from analysis.training.settings import TrainingSettings
from analysis.vqa.settings import VqaSettings
from core.errors import GroundingError
from core.records import RunStore

pytestmark = pytest.mark.timeout(900)  # a kernel for each notebook; a busy machine is slow

NAMES = (
    "claims",
    "doctor",
    "encoder_tables",
    "error_ledger",
    "explorer",
    "four_challenges",
    "grounded_conversation",
    "grounded_conversation_generation",
    "grounding_ablations",
    "head_layer_heatmaps",
    "head_selection",
    "normalization_effects",
    "pilot_study",
    "presets",
    "train_difflmm",
    "visual_question_answering",
)
PROFILES = ("embedded", "smoke")
KINDS = ("differences", "probes", "rank_agreement", "runs")  # tables of both jobs of encoder_tables
PROMISED = {  # by the name of the job, which is its notebook's but for the encoder tables
    "claims": {
        "figures": ["norms"],
        "tables": ["claims_encoders", "claims_sinks", "claims_equation3", "claims_places"],
        "records": [],
    },
    "doctor": {"figures": ["doctor_squares"], "tables": ["doctor"], "records": []},
    "grounded_conversation": {
        "figures": ["conversation_scene_0", "best_masks_scene_0", "conversation_scene_1"],
        "tables": ["phrases"],
        "records": ["records/records/scene_0.safetensors", "records/run.json"],
    },
    "grounded_conversation_generation": {
        "figures": ["gcg_scores", "gcg_protocols", "gcg_example_0", "gcg_example_1"],
        "tables": ["table2_gcg", "gcg_protocols"],
        "records": [],
    },
    "explorer": {"figures": ["selected"], "tables": [], "records": ["answers.html"]},
    "error_ledger": {"figures": ["error_ledger"], "tables": ["error_ledger", "mentions"], "records": []},
    "four_challenges": {
        "figures": ["four_challenges", "challenge_scores"],
        "tables": ["challenges_described", "challenges_asked", "challenges_shift"],
        "records": ["records/records/0.safetensors", "records/run.json"],
    },
    "grounding_ablations": {
        "figures": ["table4_normalization_and_prompt", "table7_single_heads"],
        "tables": ["table4_normalization_and_prompt", "table7_single_heads"],
        "records": ["predictions/norm + point/0.json", "predictions/layer 0 head 0/0.json"],
    },
    "head_layer_heatmaps": {
        "figures": ["mean_map", "head_maps", "head_accuracy"],
        "tables": ["head_accuracy"],
        "records": [],
    },
    "head_selection": {
        "figures": ["head_statistics", "head_selection"],
        "tables": ["heads", "rank_correlations", "head_selection"],
        "records": [],
    },
    "normalization_effects": {
        "figures": [
            "tokens_before",
            "mean_map",
            "tokens_after",
            "normalization_point_accuracy",
            "normalization_variants",
        ],
        "tables": ["normalization_effect", "normalization_variants"],
        "records": [],
    },
    "pilot_study": {
        "figures": ["pilot_study_point_accuracy", "pilot_study_mask_scores", "baselines"],
        "tables": ["table1_pilot_study", "caption_objects", "baselines", "mask_scores"],
        "records": ["random_point/run.json", "random_point/records/0.safetensors"],
    },
    "presets": {
        "figures": ["presets"],
        "tables": ["presets", "preset_differences"],
        "records": [],
    },
    "table5_encoders": {
        "figures": ["table5_losses", "table5_curves"],
        "tables": [f"table5_{kind}" for kind in (*KINDS, "encoders")],
        "records": [],
    },
    "table6_noise_and_blocks": {
        "figures": ["table6_losses", "table6_curves", "table6_noise_and_blocks"],
        "tables": [f"table6_{kind}" for kind in (*KINDS, "noise_and_blocks")],
        "records": [],
    },
    "visual_question_answering": {
        "figures": ["vqa_scores", "vqa_answers"],
        "tables": ["table3_vqa", "vqa_metrics", "grounding_cost"],
        "records": [],
    },
    "train_difflmm": {
        "figures": ["loss_stage_1", "loss_stage_2", "answer"],
        "tables": ["dry_run"],
        "records": [f"records/{file}" for file in ("start/model.safetensors", "stage_1/losses.jsonl")],
    },
}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def notebook(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# ---- house rules


def test_there_are_just_these_notebooks():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)


def test_no_outputs_one_parameters_cell_and_the_plain_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code(notebook)[0]


def test_a_question_first_and_small_cells_without_definitions(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "?" in first.source.splitlines()[0]
    lines = 0
    for cell in code(notebook):
        tree = ast.parse(cell.source)
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, defined) for node in ast.walk(tree))
        length = len([line for line in cell.source.splitlines() if line.strip()])
        assert length <= (25 if "parameters" in cell.metadata.get("tags", []) else 12)
        lines += length
    assert lines <= 80


def test_every_parameter_is_read_by_papermill_with_type_and_meaning(name, notebook):
    declared = declared_parameters(NOTEBOOKS / f"{name}.ipynb")
    source = code(notebook)[0].source.splitlines()
    assert list(declared) == [line.split(":")[0] for line in source]
    for parameter in declared.values():
        assert parameter.annotation in ("str", "int", "float", "bool", "dict") and parameter.help
    assert declared["output_dir"].default == f'"runs/{name}"'


def test_every_parameter_is_used(name, notebook):
    """By its name, or by the one line that reads the parameters into settings."""
    rest = "\n".join(cell.source for cell in code(notebook)[1:])
    kinds = {
        "Settings": Settings,
        "TrainingSettings": TrainingSettings,
        "GcgSettings": GcgSettings,
        "PresetSettings": PresetSettings,
        "VqaSettings": VqaSettings,
    }
    read = re.search(r"read_parameters\((\w+), globals\(\)\)", rest)
    known = {field.name for field in fields(kinds[read[1]])} if read else set()
    declared = declared_parameters(NOTEBOOKS / f"{name}.ipynb")
    assert [key for key in declared if key not in known and not re.search(rf"\b{key}\b", rest)] == []
    assert len(declared) <= 18


def test_core_is_entered_by_its_front_door(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    assert set(re.findall(r"from (core[.\w]*) import", source)) <= {"core", "core.doctor", "core.training"}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_hold_known_parameters_for_every_notebook(tmp_path, profile):
    jobs = profile_jobs(profile, tmp_path)
    assert [job.name for job in jobs] == sorted(PROMISED) and {job.notebook.stem for job in jobs} == set(NAMES)
    for job in jobs:
        assert parameter_problems(job.notebook, job.parameters, name=job.name) == []
        if "n_images" in declared_parameters(job.notebook):
            assert job.parameters["n_images"] > 0


# ---- what they write


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All notebooks, run once by the runner behind `make report`."""
    output = tmp_path_factory.mktemp("report")
    return main(["--profile", "smoke", "--output", str(output)]), output


def test_the_smoke_report_succeeds(report):
    status, output = report
    assert status == 0
    assert (output / "index.html").is_file()


@pytest.mark.parametrize("job", PROMISED)
def test_promised_files_are_there(report, job):
    folder = report[1] / job
    assert (folder / "DONE").is_file()
    for figure in PROMISED[job]["figures"]:
        for ending in ("png", "pdf", "csv"):
            assert (folder / "figures" / f"{figure}.{ending}").stat().st_size > 20
    for table in PROMISED[job]["tables"]:
        assert (folder / "tables" / f"{table}.html").stat().st_size > 200
    for record in PROMISED[job]["records"]:
        assert (folder / record).is_file()


@pytest.mark.parametrize("job", PROMISED)
def test_no_cell_failed_and_every_cell_ran(report, job):
    executed = nbformat.read(report[1] / job / f"{job}.ipynb", as_version=4)
    for cell in code(executed):
        assert cell.execution_count is not None
        assert not any(output.output_type == "error" for output in cell.outputs)


@pytest.mark.parametrize("job", PROMISED)
def test_tables_say_what_made_them(report, job):
    for table in PROMISED[job]["tables"]:
        frame = pd.read_csv(report[1] / job / "tables" / f"{table}.csv")
        ours = frame[frame["source"] == "measured here"]
        if job == "doctor":
            assert set(ours["model"]) == {"embedded"} and set(ours["result"]) == {"✓ ok"}
            continue
        trained = job.startswith(("table", "train"))
        probes = "embedded visual encoders, frozen features" if table.endswith("probes") else ""
        losses = "embedded LLaVA and DiffLMM, stage 1" if job.startswith("table") else ""
        assert set(ours["model"]) == {probes or losses or "embedded"}
        assert ours["settings"].str.contains("learning_rate=" if trained else "prompt=").all()
        assert ours["data"].str.contains("embedded scenes").all() and (ours["n_images"] > 0).all()


def test_the_pilot_table_has_our_numbers_and_the_papers(report):
    frame = pd.read_csv(report[1] / "pilot_study" / "tables" / "table1_pilot_study.csv")
    ours = frame[frame["source"] == "measured here"].set_index("method")
    assert list(ours.index) == ["Random Point", "Random Point, one per matched phrase (expected)", "attend-and-segment"]
    assert 0 < ours.loc["Random Point", "PAcc"] < 50
    assert ours.loc["attend-and-segment", "n_phrases"] > 0
    assert len(frame) == 10


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_the_encoder_tables_have_our_losses_and_the_papers(report, table):
    folder = report[1] / table.name
    assert {file.stem for file in (folder / "figures").iterdir()} == set(PROMISED[table.name]["figures"])
    assert {file.stem for file in (folder / "tables").iterdir()} == set(PROMISED[table.name]["tables"])
    index = (report[1] / "index.html").read_text(encoding="utf-8")
    assert index.count(f"Table {table.number}: {table.question}") == 2  # in the list and above the section
    frame = pd.read_csv(folder / "tables" / f"{table.name}.csv")
    ours, paper = (frame[(frame["source"] == "measured here") == here] for here in (True, False))
    assert len(ours) == len(paper) == 7
    assert (
        (ours["seeds"] != "not run").all() and (ours["training_loss"] > 0).all() and (ours["held_out_loss"] > 0).all()
    )
    assert paper["training_loss"].tolist() == paper_table(table.number)["pretrain_loss"].tolist()


def test_conversations_need_nothing_from_elsewhere(report):
    page = (report[1] / "grounded_conversation" / "conversations.html").read_text(encoding="utf-8")
    assert page.count('<div class="aas">') == 2
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))
    assert "<mark" in page and 'class="layer"' in page


def test_the_explorers_page_needs_no_network_and_no_kernel(report):
    folder = report[1] / "explorer"
    assert "widgets" in nbformat.read(folder / "explorer.ipynb", as_version=4).metadata
    page = (folder / "explorer.html").read_text(encoding="utf-8")
    assert "srcdoc=" in page and "jupyter.widget" not in page
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?:", page)
    assert (folder / "answers.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_all_notebooks_of_a_model_share_one_run(report):
    (run,) = (report[1] / "runs" / "answers").iterdir()
    assert (run / "run.json").is_file() and (run / "records" / "0.safetensors").is_file()
    (embeddings,) = (report[1] / "runs" / "embeddings").iterdir()
    pictures = list((report[1] / "runs" / "data" / "val-seed0" / "images").iterdir())
    assert len(list((embeddings / "records").iterdir())) == len(pictures)


def test_run_again_a_notebook_computes_no_record_again(report):
    folder = report[1] / "normalization_effects"
    runs = folder.parent / "runs"
    records = {path: path.stat().st_mtime_ns for path in runs.glob("answers/**/*.safetensors")}
    values = yaml.safe_load((NOTEBOOKS / "parameters" / "smoke" / "normalization_effects.yaml").read_text())
    papermill.execute_notebook(
        NOTEBOOKS / "normalization_effects.ipynb",
        folder / "again.ipynb",
        parameters={**values, "output_dir": str(folder), "runs_dir": str(runs)},
        kernel_name="python3",
        progress_bar=False,
    )
    assert len(records) >= 2
    assert {path: path.stat().st_mtime_ns for path in records} == records


# ---- parameters that cannot be used


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loading": {"geometry": "crop"}}, "geometry is 'crop'; choose one of processor, pad"),
        ({"options": {"normalization": "yes"}}, "normalization 'yes' is not known; choose one of sequence, none"),
        ({"options": {"normalisation": "none"}}, "unknown options normalisation; grounding takes row, per_head"),
        ({"preset": "reference-v1"}, "no preset is called 'reference-v1'; choose one of paper, no_normalization"),
        ({"matching": {"by": "noun"}}, "matching by 'noun' is not known; choose one of head, phrase"),
        ({"matching": {"match_by": "head"}}, "matching has no match_by; it takes by, threshold"),
        ({"matching": {"threshold": 2.0}}, "the similarity threshold is 2.0"),
        ({"loading": {"dtype": "fp16"}}, "dtype is 'fp16'; choose one of auto, float32"),
        ({"loading": {"devices": "cuda"}}, "loading has no devices; it takes device, dtype, geometry, template"),
        ({"n_images": -1}, "n_images is -1; it must be a whole number of at least 0"),
        ({"n_images": 0}, "the embedded scenes have no end"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"answer": "A cat.", "generation": {"do_sample": True}}, "a given answer is not generated"),
        ({"prompt": " "}, "prompt is empty"),
        ({"output_dir": ""}, "output_dir is empty"),
    ],
)
def test_wrong_values_are_refused_with_the_right_ones(tmp_path, wrong, message):
    values = {"output_dir": str(tmp_path), "n_images": 3} | wrong
    with pytest.raises(GroundingError, match=re.escape(message)):
        Settings(**values)


def test_pictures_come_from_a_file_a_folder_or_scikit_image(tmp_path):
    for file in ("b.png", "a.jpg", "notes.txt", "a.png"):
        (tmp_path / file).write_bytes(b"x")
    assert list(find_pictures(str(tmp_path))) == ["a.jpg", "a.png", "b"]
    assert list(find_pictures(str(tmp_path), limit=1)) == ["a.jpg"]
    assert find_pictures(str(tmp_path / "b.png")) == {"b": tmp_path / "b.png"}
    with pytest.raises(GroundingError, match="no pictures at"):
        find_pictures(str(tmp_path / "none.png"))
    assert list(bundled_photographs(2)) == ["astronaut", "chelsea"] and bundled_photographs(0) == {}
    with pytest.raises(GroundingError, match="99 photographs were asked for"):
        bundled_photographs(99)


def test_images_that_failed_are_told(tmp_path):
    store = RunStore(tmp_path / "run", {"model": "tiny"})
    for record_id in ("1", "2", "9"):
        store.write(record_id, grounding((40, 60), [("star", (1.5, 1.5), [rectangle((40, 60), 0, 0, 5, 5)])]))
    store.write_error("3", "the image file is truncated")
    told = describe_run(store, ["1", "2", "3"])
    assert told == "2 of 3 images have a grounded answer; 1 could not be used (3: the image file is truncated)."
