"""The report runner on small real notebooks: each full run below starts real kernels."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from analysis.report.__main__ import main, override_parameters, select_jobs
from analysis.report.page import flatten, notebook_section, write_page
from analysis.report.parameters import declared_parameters, fits, parse_value
from analysis.report.profiles import NOTEBOOKS, profile_jobs, profile_name
from analysis.report.progress import NotebookProgress
from analysis.report.runs import (
    NotebookJob,
    count_cells,
    job_identity,
    prepare_shared,
    read_state,
    shared_folder,
)
from analysis.report.summary import in_papers_order, summarise
from analysis.results import ITEMS, Result, save_results
from analysis.scoring.metrics import Interval
from analysis.tables import Provenance
from core.errors import GroundingError

DOT = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
        "0000000049454e44ae426082"
    )
).decode()
PARAMETERS = """model: str = "embedded"  # hub id, directory or embedded model
images: int = 3  # number of images
threshold: float = 0.5
layers: list[int] = [0, 1]
revision: str = ""
output_dir: str = "reports/example\""""
SHARING = 'runs_dir: str = ""  # shared\n' + PARAMETERS
WRITE = f"""import base64, pathlib, sys
out = pathlib.Path(output_dir)
(out / "tables").mkdir(parents=True, exist_ok=True)
(out / "figures").mkdir(exist_ok=True)
(out / "records").mkdir(exist_ok=True)
(out / "tables" / "scores.csv").write_text("name,score\\n<b>dog</b>,0.25\\ncat,0.75\\n")
(out / "tables" / "labelled.html").write_text("<!doctype html><body><table><caption>Labelled</caption></table></body>")
(out / "figures" / "heat_map.png").write_bytes(base64.b64decode("{DOT}"))
(out / "records" / "run.json").write_text('{{"config": {{"model": {{"revision": "abc123"}}}}}}')
with open(out / "runs.txt", "a") as log: log.write(f"{{images}} {{sys.executable}}\\n")
print("counted 12 of 34 images")"""
MARK = 'pathlib.Path(output_dir, "DONE").touch()'
SHOW = """from IPython.display import Markdown
Markdown(f"## Is it {images}?\\n\\nThis one asks for `{images}`.\\n\\nAnd more.")"""
GOOD = ["# Where it looks\n\nDoes the runner work?\n\nMore words.", PARAMETERS, WRITE, MARK]
FAILING = ["# It fails", PARAMETERS, 'print("before")', 'raise ValueError(f"no dog in {images} images")']
KILLED = ["# It dies", PARAMETERS, "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"]
SHARED = ["# Which of two?\n\nOne of them.", PARAMETERS, WRITE, SHOW, MARK]
UNMARKED = ["# It forgets its marker", PARAMETERS, "1 + 1"]


def write_notebook(path: Path, cells: list[str]) -> Path:
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    for source in cells:
        cell = nbformat.v4.new_markdown_cell if source.startswith("#") else nbformat.v4.new_code_cell
        notebook.cells.append(cell(source))
        if "output_dir: str" in source:
            notebook.cells[-1].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    return path


def make_profile(root: Path, notebooks: dict[str, list[str]], parameters: dict) -> Path:
    (root / "parameters" / "small").mkdir(parents=True)
    for name, cells in notebooks.items():
        write_notebook(root / f"{name}.ipynb", cells)
        (root / "parameters" / "small" / f"{name}.yaml").write_text(yaml.safe_dump(parameters))
    return root


def share(root: Path) -> Path:
    """Two jobs of one notebook, in other order than their parameters."""
    notebooks = make_profile(root / "notebooks", {}, {})
    write_notebook(notebooks / "both.ipynb", SHARED)
    for name, images in (("first", 2), ("second", 1)):
        values = {"notebook": "both", "images": images}
        (notebooks / "parameters" / "small" / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return notebooks


def run(notebooks: Path, output: Path, *words: str) -> int:
    return main(["--profile", "small", "--notebooks", str(notebooks), "--output", str(output), *words])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    root = tmp_path_factory.mktemp("report")
    kinds = {"a_failing": FAILING, "b_good": GOOD, "c_killed": KILLED, "d_unmarked": UNMARKED}
    notebooks = make_profile(root / "notebooks", kinds, {"images": 5})
    return notebooks, root / "out", run(notebooks, root / "out")


def test_failures_do_not_lose_the_others(report):
    _, output, status = report
    assert status == 1
    states = {path.name: read_state(path) for path in output.iterdir() if path.is_dir()}
    assert {name: state.status for name, state in states.items()} == {
        "a_failing": "failed",
        "b_good": "finished",
        "c_killed": "failed",
        "d_unmarked": "failed",
    }
    assert states["a_failing"].error["type"] == "ValueError"
    assert states["a_failing"].error["message"] == "no dog in 5 images"
    assert states["c_killed"].error["type"] == "DeadKernelError"
    assert "DONE" in states["d_unmarked"].error["message"]
    assert (output / "b_good" / "runs.txt").read_text() == f"5 {sys.executable}\n"


def test_page_shows_results_and_failures(report):
    _, output, _ = report
    page = (output / "index.html").read_text()
    for text in (
        "Where it looks",
        "Does the runner work?",
        "no dog in 5 images",
        "&lt;b&gt;dog&lt;/b&gt;",
        "abc123",
        "Labelled",
    ):
        assert text in page
    assert "More words" not in page and "<!doctype html><body>" not in page
    links = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert {
        "b_good/figures/heat_map.png",
        "b_good/b_good.html",
        "a_failing/a_failing.ipynb",
        "b_good/tables/scores.csv",
    } <= set(links)
    assert [link for link in links if not (output / link).exists()] == []


def test_html_hides_code_and_fetches_nothing(report):
    _, output, _ = report
    html = (output / "b_good" / "b_good.html").read_text()
    assert "counted 12 of 34 images" in html
    assert "b64decode" not in html
    assert "pre {word-break: normal !important" in html
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="http[^"]*"', html) == []


def test_formulas_keep_their_script(tmp_path):
    from analysis.report.notebook_html import export_html

    html = export_html(write_notebook(tmp_path / "formula.ipynb", ["# Mean\n\n$A - \\bar A$"])).read_text()
    assert re.search(r'<script src="http[^"]*mathjax', html, flags=re.IGNORECASE)


def test_finished_notebooks_are_skipped_until_something_changes(report, capsys):
    notebooks, output, _ = report
    log = output / "b_good" / "runs.txt"
    assert run(notebooks, output, "--only", "b_good") == 0
    assert len(log.read_text().splitlines()) == 1
    assert "finished earlier" in capsys.readouterr().err
    assert run(notebooks, output, "--only", "b_good", "--force") == 0
    assert len(log.read_text().splitlines()) == 2  # records were kept
    assert run(notebooks, output, "--only", "b_good", "-p", "images", "7") == 0
    assert log.read_text().split()[0] == "7" and len(log.read_text().splitlines()) == 1  # an embedded model's were not
    assert "no dog in 5 images" in (output / "index.html").read_text()  # what did not run is still shown


def test_every_part_of_the_identity_counts(tmp_path):
    notebook = write_notebook(tmp_path / "one.ipynb", GOOD)
    before = job_identity(NotebookJob(notebook, {"images": 5}, tmp_path))
    assert job_identity(NotebookJob(notebook, {"images": 5}, tmp_path / "elsewhere")) == before
    other = job_identity(NotebookJob(notebook, {"images": 6}, tmp_path))
    assert {part for part in before if before[part] != other[part]} == {"parameters"}
    write_notebook(notebook, [*GOOD, "2 + 2"])
    assert job_identity(NotebookJob(notebook, {"images": 5}, tmp_path))["notebook"] != before["notebook"]


def test_fresh_deletes_only_what_a_run_wrote(tmp_path, capsys):
    notebooks = make_profile(tmp_path / "notebooks", {"one": GOOD}, {})
    precious = tmp_path / "out" / "one" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    assert run(notebooks, tmp_path / "out", "--fresh") == 2
    assert "holds no report.json" in capsys.readouterr().err
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "imges", "4"], "no parameter 'imges'; did you mean images?"),
        (["-p", "images", "many"], "images must be int, got 'many' (str)"),
        (["-p", "layers", "[0, x]"], "layers must be list[int]"),
        (["-p", "output_dir", "x"], "`output_dir` is set by the runner"),
        (["--only", "two"], "no notebook two in this profile; it has: one"),
        (["--profile", "absent"], "profiles there: small"),
    ],
)
def test_refusals_come_before_any_kernel(tmp_path, capsys, words, message):
    notebooks = make_profile(tmp_path / "notebooks", {"one": GOOD}, {})
    assert run(notebooks, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parameter_files_are_checked_too(tmp_path, capsys):
    notebooks = make_profile(tmp_path / "notebooks", {"one": GOOD, "two": GOOD}, {"thresold": 0.5, "images": "3"})
    assert run(notebooks, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("did you mean threshold?") == 2 and error.count("images must be int") == 2


def test_parameter_file_without_notebook_or_mapping(tmp_path):
    notebooks = make_profile(tmp_path / "notebooks", {"one": GOOD}, {})
    (notebooks / "parameters" / "small" / "one.yaml").write_text("- 1\n")
    with pytest.raises(GroundingError, match="must hold `name: value` lines, got list"):
        profile_jobs("small", tmp_path, notebooks=notebooks)
    (notebooks / "parameters" / "small" / "absent.yaml").write_text("")
    with pytest.raises(GroundingError, match=r"absent\.ipynb does not exist"):
        profile_jobs("small", tmp_path, notebooks=notebooks)


def test_a_parameter_file_may_name_its_notebook(tmp_path):
    notebooks = share(tmp_path)
    jobs = profile_jobs("small", tmp_path / "out", notebooks=notebooks)
    assert [(job.name, job.notebook.name, job.parameters, job.directory) for job in jobs] == [
        ("first", "both.ipynb", {"images": 2}, tmp_path / "out" / "first"),
        ("second", "both.ipynb", {"images": 1}, tmp_path / "out" / "second"),
    ]
    assert [job.name for job in select_jobs(jobs, ["second"])] == ["second"]
    assert {count_cells(job) for job in jobs} == {len(SHARED) + 1}
    one, two = map(job_identity, jobs)
    assert {part for part in one if one[part] != two[part]} == {"parameters"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "notebook: bth",
            r"small/first\.yaml names the notebook 'bth', and .*bth\.ipynb does not exist; .* there: both$",
        ),
        ("notebook: ../notebooks/both", r"names the notebook '\.\./notebooks/both', and .* does not exist"),
        ("notebook: 5", r"`notebook` in .*first\.yaml must be the name of a notebook, got 5 \(int\)"),
        ("notebook:", r"`notebook` in .*first\.yaml must be the name of a notebook, got None \(NoneType\)"),
    ],
)
def test_a_named_notebook_must_be_there(tmp_path, written, message):
    notebooks = share(tmp_path)
    (notebooks / "parameters" / "small" / "first.yaml").write_text(written)
    with pytest.raises(GroundingError, match=message):
        profile_jobs("small", tmp_path, notebooks=notebooks)


def test_jobs_of_one_notebook_are_told_apart_in_messages(tmp_path):
    notebooks = share(tmp_path)
    (notebooks / "parameters" / "small" / "second.yaml").write_text("notebook: both\nimages: many\nimgs: 1\n")
    with pytest.raises(GroundingError, match="second: images must be int, got 'many'") as raised:
        override_parameters(profile_jobs("small", tmp_path, notebooks=notebooks), [])
    assert "second has no parameter 'imgs'" in str(raised.value) and "first" not in str(raised.value)


def test_a_parameter_cannot_be_called_as_the_key_is(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PARAMETERS", f'{PARAMETERS}\nnotebook: str = "x"')
    with pytest.raises(GroundingError, match=r"one\.ipynb declares a parameter `notebook`.* call it otherwise"):
        declared_parameters(write_notebook(tmp_path / "one.ipynb", ["# One", PARAMETERS]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    root = tmp_path_factory.mktemp("shared")
    notebooks = share(root)
    return notebooks, root / "out", run(notebooks, root / "out", "--only", "second")


def test_two_jobs_of_one_notebook_have_results_of_their_own(shared, capsys):
    notebooks, output, status = shared
    assert status == 0
    not_run, finished = (notebook_section(job, output) for job in profile_jobs("small", output, notebooks=notebooks))
    assert (not_run.name, not_run.title, not_run.question) == ("first", "Which of two? (first)", "One of them.")
    assert (finished.name, finished.title) == ("second", "Is it 1?")
    assert finished.question == "This one asks for 1."
    assert finished.links["read"] == "second/second.html" and finished.links["notebook"] == "second/second.ipynb"
    assert run(notebooks, output) == 0
    told = capsys.readouterr().err
    assert f"[1/2] first: started, {len(SHARED) + 1} cells" in told and "[2/2] second: finished earlier" in told
    assert sorted(path.name for path in output.iterdir()) == ["first", "index.html", "second"]
    assert [(output / name / "runs.txt").read_text().split()[0] for name in ("first", "second")] == ["2", "1"]
    page = (output / "index.html").read_text()
    links = set(re.findall(r'(?:href|src)="([^"#][^"]*)"', page))
    assert {"first/first.html", "second/second.ipynb"} <= links and "both" not in page
    assert [link for link in links if not (output / link).exists()] == []
    assert page.count("Is it 2?") == page.count("Is it 1?") == 2  # in the list and above the section
    assert "<title>second</title>" in (output / "second" / "second.html").read_text()
    assert run(notebooks, output, "--only", "first", "-p", "images", "4") == 0  # leaves the other alone
    assert read_state(output / "second").parameters == {"images": 1}
    assert "finished earlier" not in capsys.readouterr().err and "Is it 4?" in (output / "index.html").read_text()


def test_a_torn_executed_notebook_does_not_lose_the_page(tmp_path):
    notebooks = share(tmp_path)
    job = profile_jobs("small", tmp_path / "out", notebooks=notebooks)[0]
    job.directory.mkdir(parents=True)
    job.executed.write_text('{"cells": [')
    assert notebook_section(job, tmp_path / "out").title == "Which of two? (first)"


def test_notebooks_that_cannot_report_are_refused(tmp_path):
    with pytest.raises(GroundingError, match="declares no `output_dir: str`"):
        declared_parameters(write_notebook(tmp_path / "bare.ipynb", ["1 + 1"]))
    (tmp_path / "broken.ipynb").write_text("not a notebook")
    with pytest.raises(GroundingError, match="cannot be read as a notebook"):
        declared_parameters(tmp_path / "broken.ipynb")


@pytest.mark.parametrize("line", ["split: str | None = None", 'split: str = ""  # "" = all'])
def test_parameters_that_papermill_passes_over_are_refused(tmp_path, monkeypatch, line):
    monkeypatch.setitem(globals(), "PARAMETERS", f"{PARAMETERS}\n{line}")
    notebook = write_notebook(tmp_path / "one.ipynb", ["# One", PARAMETERS])
    with pytest.raises(GroundingError, match=r"does not see the parameters split of .*one\.ipynb; .* no second `=`"):
        declared_parameters(notebook)


def test_every_profile_of_this_repository_fits_its_notebooks(tmp_path):
    profiles = sorted(path.stem for path in (NOTEBOOKS / "parameters").iterdir())
    notebooks = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert {"embedded", "smoke"} <= set(profiles)
    for profile in profiles:
        used = {job.notebook.stem for job in override_parameters(profile_jobs(profile, tmp_path), [])}
        assert used == set(notebooks) if profile in ("embedded", "smoke") else used <= set(notebooks)


def test_overrides_reach_the_notebooks_that_declare_them(tmp_path):
    other = [PARAMETERS.replace("revision", "split") if cell == PARAMETERS else cell for cell in GOOD]
    notebooks = make_profile(tmp_path / "notebooks", {"one": GOOD}, {"images": 2})
    write_notebook(notebooks / "two.ipynb", other)
    two = nbformat.read(notebooks / "two.ipynb", as_version=4)
    two.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(two, notebooks / "two.ipynb")
    (notebooks / "parameters" / "small" / "two.yaml").write_text("")
    jobs = profile_jobs("small", tmp_path, notebooks=notebooks)
    changed = override_parameters(jobs, [("revision", "1"), ("threshold", "1e-3")])
    assert [job.parameters for job in changed] == [
        {"images": 2, "revision": "1", "threshold": 1e-3},
        {"threshold": 1e-3},
    ]
    assert [job.parameters for job in jobs] == [{"images": 2}, {}]
    assert [job.name for job in select_jobs(jobs, ["two", "one"])] == ["one", "two"]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, "int", True),
        (True, "int", False),
        (3.0, "int", False),
        (3, "float", True),
        ("3", "float", False),
        (False, "bool", True),
        (0, "bool", False),
        ([1, 2], "list[int]", True),
        ([1, "2"], "list[int]", False),
        (None, "Optional[int]", True),
        (None, "int", False),
        ({"a": 1}, "dict", True),
        ("anything", None, True),
        ("anything", "Path", True),
    ],
)
def test_fits(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_parse_value():
    assert parse_value("12", "str") == "12"
    assert parse_value("2e-4", "float") == 2e-4
    assert parse_value("[0, 3]", "list[int]") == [0, 3]
    assert parse_value("null", "Optional[int]") is None
    assert parse_value("a: [", None) == "a: ["


def test_flatten_names_every_leaf():
    nested = {"model": {"revision": "abc", "layers": [1, 2]}, "seed": 0}
    assert flatten(nested) == {"model.revision": "abc", "model.layers": "[1, 2]", "seed": "0"}


def test_the_page_names_the_models_of_every_notebook(tmp_path):
    models = {job.name: notebook_section(job, tmp_path).model for job in profile_jobs("embedded", tmp_path)}
    assert models["head_layer_heatmaps"] == "embedded" and models["table5_encoders"] == ""
    named = profile_jobs("variants", tmp_path)[0]
    assert notebook_section(named, tmp_path).model.startswith("LLaVA, CLIP; LLaVA, DINO; ")
    asked = NotebookJob(named.notebook, {"models": {}, "model": "some/model"}, tmp_path / "other")
    assert notebook_section(asked, tmp_path).model == "some/model"
    assert "`" not in "".join(notebook_section(job, tmp_path).question for job in profile_jobs("embedded", tmp_path))


def test_long_tables_are_cut_and_say_so(tmp_path):
    job = NotebookJob(write_notebook(tmp_path / "one.ipynb", GOOD), {}, tmp_path / "out" / "one")
    (job.directory / "tables").mkdir(parents=True)
    (job.directory / "tables" / "tokens.csv").write_text("i\n" + "\n".join(f"row{i}" for i in range(100)))
    (job.directory / "tables" / "half.csv").write_text("")
    page = write_page(tmp_path / "out", [job], profile="small").read_text()
    assert "The first 15 of 100 rows." in page and "row14" in page and "row15" not in page and "not run" in page


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use(progress: NotebookProgress) -> None:
    with progress:
        progress.start("one")
        progress.advance()
        progress.write("\x1b[32mimages\x1b[0m 10%\r images 20%\n")
        progress.end("finished")
        progress.start("two")
        progress.end("failed: ValueError: no")


def test_progress_in_a_log_is_plain_lines():
    stream = io.StringIO()
    use(NotebookProgress({"one": 2, "two": 3}, stream=stream, every=0.0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2] one: started, 2 cells"
    assert lines[2].endswith("images 20%") and "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert lines[-1].startswith("[2/2] two: failed: ValueError: no (")


def test_progress_in_a_terminal_is_one_bar_that_ends_full():
    stream = Terminal()
    use(NotebookProgress({"one": 2, "two": 3}, stream=stream))
    assert "5/5" in stream.getvalue()
    assert "[1/2] one: finished (0 s)\n" in stream.getvalue()


def test_state_survives_damage(tmp_path):
    assert read_state(tmp_path) is None
    (tmp_path / "report.json").write_text('{"status": "fin')
    assert read_state(tmp_path) is None
    (tmp_path / "report.json").write_text(json.dumps({"another": "format"}))
    assert read_state(tmp_path) is None


# ---- what notebooks share


def shared_runs(tmp_path: Path) -> tuple[list[NotebookJob], Path]:
    """A job that shares, and a folder with a run of an embedded model, one of another model, and drawn scenes."""
    notebook = write_notebook(tmp_path / "one.ipynb", ["# One", SHARING, MARK])
    runs = shared_folder(tmp_path / "out")
    for name, model in {"own": "embedded/difflmm", "other": "hub/model"}.items():
        folder = runs / "answers" / name
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "model": {"name_or_path": model},
            "segmenter": None,
            "data": "instances.json",
            "nlp": "en_core_web_lg",
        }
        (folder / "run.json").write_text(json.dumps({"config": config}))
    (runs / "data" / "val-seed0").mkdir(parents=True, exist_ok=True)
    return [NotebookJob(notebook, {}, tmp_path / "out" / "one")], runs


def kept(runs: Path) -> list[str]:
    return sorted(path.parent.name for path in runs.glob("*/*/run.json")) + [path.name for path in runs.glob("data/*")]


def test_changed_code_drops_what_embedded_models_shared_and_nothing_else(tmp_path, monkeypatch):
    jobs, runs = shared_runs(tmp_path)
    (runs / "code.json").write_text("{}")
    prepare_shared(jobs, tmp_path / "out")
    assert kept(runs) == ["other"]


def test_unchanged_code_keeps_all_that_is_shared_and_fresh_keeps_nothing(tmp_path):
    jobs, runs = shared_runs(tmp_path)
    prepare_shared(jobs, tmp_path / "out", fresh=True)
    assert kept(runs) == []
    shared_runs(tmp_path)
    prepare_shared(jobs, tmp_path / "out")
    assert kept(runs) == ["other", "own", "val-seed0"]


def test_a_profile_may_name_another_shared_folder(tmp_path):
    notebooks = make_profile(
        tmp_path,
        {"one": ["# One", SHARING, "import pathlib\nprint('in', runs_dir)", MARK]},
        {"runs_dir": "elsewhere"},
    )
    assert run(notebooks, tmp_path / "out") == 0
    (output,) = [o for c in nbformat.read(tmp_path / "out/one/one.ipynb", 4).cells for o in c.get("outputs", [])]
    assert output.text == "in elsewhere\n"


# ---- a profile of one file

TAKES_MODEL = ["# One", PARAMETERS, MARK]
TAKES_NONE = ["# Two", 'images: int = 1  # images\noutput_dir: str = ""  # folder', MARK]


def one_file(root: Path, text: str) -> tuple[Path, Path]:
    """Three notebooks, of which two declare `model`, and a profile of one file."""
    notebooks = make_profile(root / "notebooks", {"one": TAKES_MODEL, "other": TAKES_MODEL}, {})
    write_notebook(notebooks / "two.ipynb", TAKES_NONE)
    (root / "mine.yaml").write_text(text)
    return notebooks, root / "mine.yaml"


def told(jobs: list[NotebookJob]) -> dict[str, tuple[str, dict]]:
    return {job.name: (job.notebook.stem, job.parameters) for job in jobs}


def test_one_file_reaches_every_notebook_that_takes_its_values(tmp_path):
    notebooks, file = one_file(tmp_path, "model: hub/llava\nimages: 7\n")
    jobs = profile_jobs(str(file), tmp_path / "out", notebooks=notebooks)
    assert told(jobs) == {name: (name, {"model": "hub/llava", "images": 7}) for name in ("one", "other")}
    assert profile_name(str(file)) == "mine" and profile_name("embedded") == "embedded"


def test_jobs_change_leave_out_and_add(tmp_path):
    text = "model: a\nimages: 7\njobs: {one: {images: 1}, other: false, two:, again: {notebook: one, model: b}}"
    notebooks, file = one_file(tmp_path, text)
    jobs = profile_jobs(str(file), tmp_path / "out", notebooks=notebooks)
    assert told(jobs) == {
        "again": ("one", {"model": "b", "images": 7}),
        "one": ("one", {"model": "a", "images": 1}),
        "two": ("two", {"images": 7}),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: a", "has no parameter 'modle'; did you mean model?"),
        ("jobs: {absent: {}}", r"names the notebook 'absent', and .*absent\.ipynb does not exist"),
        ("jobs: [one]", "must hold `job: {name: value}` lines"),
        ("- 1", "must hold `name: value` lines, got list"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, message):
    notebooks, file = one_file(tmp_path, text)
    with pytest.raises(GroundingError, match=message):
        profile_jobs(str(file), tmp_path / "out", notebooks=notebooks)


def test_the_papers_profile_fits_the_notebooks(tmp_path):
    jobs = override_parameters(profile_jobs("paper", tmp_path), [])
    assert {"pilot_study", "gcg_val", "gcg_test", "grounded_conversation"} <= {job.name for job in jobs}
    (pilot,) = (job.parameters for job in jobs if job.name == "pilot_study")
    assert pilot["sam_checkpoint"].endswith("sam_vit_h_4b8939.pth") and pilot["preset"] == "pilot_study"


# ---- the summary


def test_the_summary_comes_first_and_names_what_is_missing(tmp_path):
    jobs = [
        NotebookJob(write_notebook(tmp_path / f"{name}.ipynb", TAKES_MODEL), {}, tmp_path / "out" / name)
        for name in ("alpha", "zeta")
    ]
    made = Provenance("hub/llava", "COCO", 5)
    number = {"interval": Interval(78.4, 75.0, 81.0), "paper": 34.01, "paper_method": "LLaVA-1.5"}
    first = Result(item="Table 1", quantity="PAcc (%)", method="<mine>", note="other points", **number)
    save_results(jobs[1].directory, [first], made)
    save_results(jobs[0].directory, [Result(item="Figure 5", quantity="maps", figure="heads")], made)
    (jobs[0].directory / "figures").mkdir()
    (jobs[0].directory / "figures" / "heads.png").write_bytes(base64.b64decode(DOT))
    assert [job.name for job in in_papers_order(jobs)] == ["zeta", "alpha"]
    page = write_page(tmp_path / "out", jobs, profile="mine").read_text()
    summary = page[: page.index("What was run")]
    assert (
        "78.4 (75.0 to 81.0)" in summary
        and ">34.01<" in summary
        and ">LLaVA-1.5<" in summary
        and "&lt;mine&gt;" in summary
    )
    assert "Ours: COCO, n = 5. The paper's: COCO val2017" in summary and "Other points." in summary
    assert 'src="alpha/figures/heads.png"' in summary
    assert len(re.findall("not in this run", summary)) == len(ITEMS) - 2
    assert summary.count("Not finished: ") == 1  # said once, not beside every item that is missing
    assert page.index('<section id="zeta">') < page.index('<section id="alpha">')


def test_the_same_rows_of_two_jobs_both_stand_in_the_summary(tmp_path):
    jobs = []
    for name, recall in (("gcg_val", 41.0), ("gcg_test", 43.0)):
        jobs.append(NotebookJob(notebook=tmp_path / "gcg.ipynb", parameters={}, directory=tmp_path / name))
        row = Result(item="Table 2", quantity="recall (%)", method="ours", interval=Interval(recall, 40.0, 45.0))
        save_results(jobs[-1].directory, [row], Provenance("a model", "a set", 7))
    (item,) = [item for item in summarise(jobs) if item.name == "Table 2"]
    told = [(line.name, line.cells[0][0]) for line in item.lines]
    assert told == [("ours (gcg val)", "41.0 (40.0 to 45.0)"), ("ours (gcg test)", "43.0 (40.0 to 45.0)")]
