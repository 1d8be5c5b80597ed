"""The plug-in, through lmms-eval's own evaluator; lmms-eval is imported once for all of it."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from analysis.pilot_study.models import StudiedModel
from analysis.vqa.cost import maps_against_none
from analysis.vqa.harness import INSTALL, SCENES, installed, run_tasks, write_tasks
from analysis.vqa.results import read_results
from analysis.vqa.scoring import POPE, score_question, statistic
from analysis.vqa.settings import VqaSettings
from analysis.vqa.table import COLUMNS, metrics_table
from core.errors import GroundingError
from core.harness import NAME, HarnessModel, batches, generation_of
from core.lmm import load_lmm

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def lmms_eval(tmp_path_factory):
    """The library; its copies of data sets go to a folder of the test's."""
    if not installed():
        pytest.fail(f"{INSTALL}: the extra `vqa` belongs to an installation for development")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        import lmms_eval

        yield lmms_eval


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("scenes"), split="test", n=3)


@pytest.fixture(scope="session")
def run(tasks, tmp_path_factory):
    """The embedded model on the embedded sets, in padded batches."""
    output = tmp_path_factory.mktemp("results")
    return run_tasks("embedded", SCENES, output, include_path=tasks, batch_size=5, geometry="pad", device="cpu")


# ---- found by lmms-eval


def test_lmms_eval_finds_the_model_by_its_entry_point():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    found = {entry.name: entry.value for entry in entry_points(group="lmms_eval.models")}
    assert found.get(NAME) == declared[NAME], "install the package again: its entry points changed"
    from lmms_eval.api.model import lmms
    from lmms_eval.models import get_model

    model = get_model(NAME)
    assert issubclass(model, HarnessModel) and issubclass(model, lmms)
    assert model is get_model(NAME) and "batch_size" in model.__doc__


def test_model_args_are_read_and_win_over_the_command_line():
    from core.harness import AttendAndSegment

    arguments = "pretrained=embedded,dtype=bfloat16,device=cpu,maps=True,batch_size=3,geometry=processor"
    model = AttendAndSegment.create_from_arg_string(
        arguments, {"batch_size": 1, "device": None, "max_batch_size": None}
    )
    assert (model.batch_size, model.maps, str(model.device), model.rank) == (3, True, "cpu", 0)
    assert str(model.lmm.model.dtype) == "torch.bfloat16" and model.lmm.family.geometry == "processor"
    model.clean()
    assert model.lmm is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "batch_size is 'auto'; give a whole number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"maps": "folder"}, "maps is 'folder'; give True or False"),
        ({"use_cache": True}, "model_args has no use_cache; it takes pretrained, batch_size, maps"),
        ({"pretrained": "nowhere/none"}, "nowhere/none"),
        ({"geometry": "crop"}, "unknown geometry 'crop'"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments, message):
    from core.harness import AttendAndSegment

    with pytest.raises(GroundingError, match=re.escape(message)):
        AttendAndSegment(**arguments)


def test_a_name_that_is_not_there_is_an_attribute_error():
    import core.harness

    with pytest.raises(AttributeError, match="no attribute 'Another'"):
        _ = core.harness.Another


# ---- what it answers


def test_answers_are_the_models_own(run, tasks):
    lmm = load_lmm("embedded", geometry="pad", device="cpu")
    rows = [json.loads(line) for line in (tasks / "scenes_vqa.jsonl").read_text().splitlines()]
    said = [lmm.generate(row["image"], row["question"], max_new_tokens=48).text for row in rows]
    logged = read_results(run)["scenes_vqa"].samples
    assert [each["filtered_resps"] for each in logged] == said
    assert [each["target"] for each in logged] == [row["answer"] for row in rows]


def test_metrics_from_the_logs_are_lmms_evals(run):
    found = read_results(run)
    assert {task: result.n for task, result in found.items()} == {
        task: len(result.samples) for task, result in found.items()
    }
    metrics = metrics_table({"embedded": found})
    assert metrics["note"].eq("").all() and metrics["n_pictures"].eq(3).all()
    stated = [(result.task, name, value) for result in found.values() for name, value in result.metrics.items()]
    assert len(stated) == len(metrics) == 7 + 2 * 16
    for task, name, value in stated:
        assert statistic(name).of([each[name] for each in found[task].samples]) == pytest.approx(value)


def test_grounding_costs_no_answer(tmp_path):
    settings = VqaSettings(output_dir=str(tmp_path), n_images=2, loading={"device": "cpu", "batch_size": 4})
    counts, changed = maps_against_none([StudiedModel("embedded", settings, "")])
    assert counts["batch_size"].tolist() == [1, 4] and counts["differing"].tolist() == [0, 0] and changed.empty
    assert (counts["n_answers"] > 20).all() and (counts["n_words"] > 4 * counts["n_answers"]).all()


def test_a_run_is_kept_and_another_replaces_it(run, tasks, tmp_path):
    options = {"include_path": tasks, "batch_size": 5, "geometry": "pad", "device": "cpu"}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    run_tasks("embedded", SCENES, run, **options)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    for limit in (1, 2):
        run_tasks("embedded", ["scenes_vqa"], tmp_path, limit=limit, **options)
        assert {task: result.n for task, result in read_results(tmp_path).items()} == {"scenes_vqa": limit}
    with pytest.raises(GroundingError, match="lmms-eval knows no task scenes_none"):
        run_tasks("embedded", ["scenes_none"], tmp_path, **options)


def test_tasks_of_lmms_eval_run_as_they_are(lmms_eval, tasks, tmp_path, monkeypatch):
    """TextVQA's own task file, with questions about scenes in the place of its data."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (tasks / "scenes_vqa.jsonl").read_text().splitlines()][:2]
    for row in rows:
        row["answers"] = [row["sentence"]] * 10
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = Path(lmms_eval.__file__).parent / "tasks" / "textvqa" / "textvqa_val.yaml"
    task = {"include": str(own), "task": "textvqa_here", "dataset_path": "json", "test_split": "test"}
    task |= {"dataset_kwargs": {"data_files": {"test": "text.jsonl"}}}
    task |= {"lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": "", "ocr": False}}}
    text = yaml.safe_dump(task) + "doc_to_visual: !function analysis.vqa.scoring.picture\n"
    (tmp_path / "textvqa_here.yaml").write_text(text)
    run_tasks("embedded", ["textvqa_here"], tmp_path / "out", include_path=tmp_path, device="cpu", geometry="pad")
    found = read_results(tmp_path / "out")["textvqa_here"]
    expected = [float(row["sentence"] == each["filtered_resps"]) for row, each in zip(rows, found.samples, strict=True)]
    assert found.n == 2 and found.metrics["exact_match"] == sum(expected) / 2 and expected[1] == 1.0
    assert (tmp_path / "out" / "submissions").is_dir() and not (tmp_path / "submissions").exists()


# ---- what it refuses


def request(context="What is there?", pictures=1, **options):
    pictures = [Image.new("RGB", (40, 30))] * pictures
    return SimpleNamespace(args=(context, options, lambda doc: pictures, 0, "task", "test"))


@pytest.fixture(scope="module")
def model():
    from core.harness import AttendAndSegment

    model = AttendAndSegment("embedded", device="cpu", batch_size=2)
    model.task_dict = {"task": {"test": [{}]}}
    return model


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request(pictures=2), "question 0 of task task comes with 2 pictures"),
        (request(pictures=0), "comes with 0 pictures; attend_and_segment answers questions about exactly one"),
        (request("<image>\nWhat?"), "holds the image token '<image>'"),
        (request(num_beam_groups=2), "generation_kwargs have num_beam_groups; known: max_new_tokens"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(model, asked, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        model.generate_until([asked])


def test_other_kinds_of_request_are_refused(model):
    with pytest.raises(GroundingError, match="scores no given continuation"):
        model.loglikelihood([])
    with pytest.raises(GroundingError, match="one question about one picture"):
        model.generate_until_multi_round([])


def test_an_answer_ends_before_the_tasks_stop_words(model):
    whole = model.generate_until([request(max_new_tokens=20)])[0]
    cut = model.generate_until([request(max_new_tokens=20, until=["zebra", whole.split()[2]])])[0]
    assert whole.startswith(cut) and cut == whole[: whole.index(whole.split()[2])]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}),
        (
            {"temperature": 0, "top_p": 1.0, "num_beams": 1},
            {"max_new_tokens": 1024, "num_beams": 1, "do_sample": False},
        ),
        ({"temperature": 0.5, "top_p": None}, {"max_new_tokens": 1024, "temperature": 0.5, "do_sample": True}),
        ({"max_new_tokens": 16, "image_aspect_ratio": "original"}, {"max_new_tokens": 16, "do_sample": False}),
        ({"do_sample": False, "temperature": 0.7}, {"max_new_tokens": 1024, "do_sample": False}),
    ],
)
def test_a_tasks_generation_options(given, options):
    before = copy.deepcopy(given)
    assert generation_of(given | {"until": "x"}) == (options, ["x"]) and given == before


def test_batches_keep_the_order_and_do_not_mix_options():
    asked = [request(str(number), max_new_tokens=tokens) for number, tokens in enumerate((8, 8, 8, 9, 8))]
    assert [[each.args[0] for each in batch] for batch in batches(asked, 2)] == [["0", "1"], ["2"], ["3"], ["4"]]


# ---- against lmms-eval's own scores


def test_popes_numbers_are_those_of_lmms_evals_task():
    from lmms_eval.tasks.pope import utils

    rng = random.Random(0)
    docs = [{"question_id": str(n), "answer": rng.choice(("yes", "no"))} for n in range(300)]
    said = [rng.choice(("yes", "no", "Yes", "No ", "perhaps")) for _ in docs]
    scored = [utils.pope_process_results(doc, [text]) for doc, text in zip(docs, said, strict=True)]
    for name in POPE[:4]:
        logged = [each[f"pope_{name}"] for each in scored]
        theirs = getattr(utils, f"pope_aggregate_{name}")(logged)
        assert statistic(f"pope_{name}").of(logged) == pytest.approx(theirs, abs=1e-12)


def test_accuracy_is_vqas_with_one_answer_of_all():
    from lmms_eval.tasks.vqav2 import utils

    short = ["two", "2", "red", "Plain  gray", "the plain gray", "near the top", "top", "yes", "no", "a red", "one"]
    sentences = {"number": "There are {} objects", "color": "It is {}", "background": "on a {} background"}
    compared = 0
    for said in short:
        for truth in short:
            for kind, sentence in sentences.items():
                doc = {"question_id": "q", "image_id": "i", "kind": kind, "answer": truth, "sentence": "x"}
                ours = score_question(doc, [sentence.format(said)])["accuracy"]
                answers = [{"answer_id": n, "answer": truth} for n in range(10)]
                theirs = utils.vqav2_process_results_val({"question_id": "q", "answers": answers}, [ours["prediction"]])
                assert ours["score"] == theirs["exact_match"]
                compared += bool(ours["prediction"])
    assert compared > 100


def test_the_tasks_of_table_3_are_lmms_evals(lmms_eval):
    """Names, metrics, and the guide's commands."""
    folder, known = Path(lmms_eval.__file__).parent / "tasks", {}
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        if name := re.search(r"""^task\s*:\s*["']?(\w+)["']?\s*$""", text, re.MULTILINE):
            known[name[1]] = text
    guide = (ROOT / "docs" / "vqa.md").read_text(encoding="utf-8")
    listed = re.search(r"--tasks (vqav2_val\S+)", guide)[1].split(",")
    for column in COLUMNS[3:]:
        for task in column.tasks:
            assert re.search(rf"metric:\s*{column.metric}\b", known[task])
            assert task in guide and column.metric in guide
    assert set(listed) <= set(known) and len(listed) == 8


@pytest.mark.slow
def test_the_command_line_leaves_the_same_results(run, tasks, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", NAME, "--include_path", str(tasks), "--log_samples"]
    command += ["--model_args", "pretrained=embedded,device=cpu", "--batch_size", "5", "--tasks", ",".join(SCENES)]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = read_results(run), read_results(tmp_path)
    assert {task: result.metrics for task, result in ours.items()} == {t: r.metrics for t, r in theirs.items()}
