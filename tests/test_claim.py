"""One claim for every kind of run: accepted again, refused with what differs, never torn."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from core.claim import claim, hold, read_claim
from core.errors import GroundingError
from core.training.recipes import stage_recipe

CONFIG = {"model": "tiny", "recipe": {"learning_rate": 0.01, "betas": [0.9, 0.98]}, "seed": 1}


def test_the_same_configuration_goes_on_and_the_claim_stays_as_it_was(tmp_path):
    file = tmp_path / "new" / "run.json"
    first = claim(file, CONFIG)
    content = file.read_bytes()
    assert claim(file, {**CONFIG, "recipe": {"learning_rate": 0.01, "betas": (0.9, 0.98)}}) == first
    assert file.read_bytes() == content
    assert read_claim(file) == first == json.loads(content)
    assert first["config"] == CONFIG and set(first) == {"format", "created", "config", "versions"}
    assert [path.name for path in file.parent.iterdir()] == ["run.json"]


def test_another_configuration_is_refused_by_what_differs(tmp_path):
    claim(tmp_path / "run.json", CONFIG)
    now = {"model": "tiny", "recipe": {"learning_rate": 0.1, "betas": [0.9, 0.98]}, "seed": 1, "view": None}
    message = r"other settings: recipe\.learning_rate 0\.01 then, 0\.1 now; view absent then, None now"
    with pytest.raises(GroundingError, match=message) as error:
        claim(tmp_path / "run.json", now)
    assert str(tmp_path) in str(error.value)
    assert "or the same settings to go on" in str(error.value) and "seed" not in str(error.value)
    assert read_claim(tmp_path / "run.json")["config"] == CONFIG


def test_many_or_long_differences_are_cut_short(tmp_path):
    claim(tmp_path / "run.json", {"prompt": {str(number): "?" for number in range(1000)}})
    with pytest.raises(GroundingError, match="994 more") as error:
        claim(tmp_path / "run.json", {"prompt": {str(number): "!" * 10_000 for number in range(1000)}})
    assert len(str(error.value)) < 2_500


def test_what_another_configuration_left_is_dropped_when_it_may_be(tmp_path):
    claim(tmp_path / "run.json", CONFIG)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a").write_text("a")
    claim(tmp_path / "run.json", CONFIG, drop=tmp_path / "records")
    assert (tmp_path / "records" / "a").is_file()
    claim(tmp_path / "run.json", {"seed": 2}, drop=tmp_path / "records")
    assert not (tmp_path / "records").exists()
    assert read_claim(tmp_path / "run.json")["config"] == {"seed": 2}


def test_only_the_first_process_writes(tmp_path):
    about = claim(tmp_path / "run.json", CONFIG, rank=1)
    assert about["config"] == CONFIG and not list(tmp_path.iterdir())
    claim(tmp_path / "run.json", CONFIG, rank=0)
    with pytest.raises(GroundingError, match="seed 1 then, 2 now"):
        claim(tmp_path / "run.json", {**CONFIG, "seed": 2}, rank=1)


@pytest.mark.parametrize("content", ["", '{"config": {"model"', "[1, 2]", "\udcff"])
def test_a_damaged_claim_is_an_error(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for read in (lambda file: claim(file, CONFIG), read_claim):
        with pytest.raises(GroundingError, match=r"run\.json is damaged \(.*restore it, or give another folder"):
            read(tmp_path / "run.json")


def test_what_is_no_json_is_refused(tmp_path):
    with pytest.raises(GroundingError, match="must be JSON values"):
        claim(tmp_path / "run.json", {"model": object()})
    assert not list(tmp_path.iterdir())


def test_a_training_run_claimed_before_there_was_a_config_goes_on(tmp_path):
    settings = {"model": "m", "data": "d", "recipe": asdict(stage_recipe(1)), "max_steps": -1}
    (tmp_path / "recipe.json").write_text(json.dumps(settings))
    assert claim(tmp_path / "recipe.json", settings)["config"] == json.loads(json.dumps(settings))
    with pytest.raises(GroundingError, match="max_steps -1 then, 5 now"):
        claim(tmp_path / "recipe.json", {**settings, "max_steps": 5})


def test_a_folder_that_another_process_trains_in_is_refused_until_that_one_ends(tmp_path):
    code = (
        "import sys; from core.claim import hold\nwith hold(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(GroundingError, match=r"another process is training in .*run'; wait until it ends"):
            hold(tmp_path / "run").__enter__()
        with hold(tmp_path / "run", rank=1):  # of a group whose first process holds the folder for all
            pass
        other.kill()
    with hold(tmp_path / "run"):
        pass


def test_a_folder_is_held_once_by_a_process_too_where_its_locks_are_a_process_s(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as NFS answers the process that has the lock
    with hold(tmp_path), pytest.raises(GroundingError, match=r"this process is training in .* already"):
        hold(tmp_path / ".." / tmp_path.name).__enter__()
    with hold(tmp_path):
        pass
