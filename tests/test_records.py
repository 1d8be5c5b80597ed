import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tiny_groundings import grounding

from core.atomic import remove_stale, write_atomically
from core.attention import normalize, to_grid
from core.errors import GroundingError
from core.record_folder import Record, RecordFolder
from core.records import RunStore

ODD_IDS = ["000000000139", "a/b c.png", "../x", ".hidden", "ünï%2F", "record.json", "x.safetensors", "a.tmp-b"]


def store(directory: Path, **config) -> RunStore:
    return RunStore(directory, {"model": "tiny", "seed": 1, **config})


def assert_same(before, after) -> None:
    assert after.image_size == before.image_size
    assert after.phrases == before.phrases
    assert after.masks == before.masks
    assert (after.options, after.segmenter, after.nlp) == (before.options, before.segmenter, before.nlp)
    for name in ("maps", "points", "scores"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert after.generation.text == before.generation.text
    assert after.generation.model == before.generation.model
    for name in ("token_ids", "prompt_ids", "token_spans"):
        assert torch.equal(getattr(after.generation, name), getattr(before.generation, name))
    for old, new in zip(before.generation.views, after.generation.views, strict=True):
        assert (new.name, new.box) == (old.name, old.box)
        assert torch.equal(new.index, old.index)


@pytest.mark.parametrize("shape", [{}, {"masks": 3}, {"phrases": 0}, {"masks": 0}, {"text": ""}])
def test_a_record_comes_back_as_it_was_written(tmp_path: Path, shape: dict) -> None:
    before = grounding(3, **shape)
    store(tmp_path).write("a", before)
    assert_same(before, store(tmp_path).read("a"))


def test_attention_keeps_the_signal_of_equation_3(tmp_path: Path) -> None:
    before = grounding(3)
    attention = 0.01 + 1e-6 * torch.randn(before.generation.attention.shape, generator=torch.Generator().manual_seed(8))
    before.generation.attention.copy_(attention)
    store(tmp_path).write("a", before)
    after = store(tmp_path).read("a").generation.attention
    signal, kept = normalize(attention), normalize(after)
    assert (kept - signal).abs().max() < 2e-3 * signal.abs().max()
    halved = normalize(attention.half().float())
    assert (halved - signal).abs().max() > 0.5 * signal.abs().max()  # what float16 of the raw maps would do


def test_maps_of_every_head_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    before = grounding(3, per_head=(2, 3))
    store(tmp_path / "without").write("a", before)
    assert store(tmp_path / "without").read("a").generation.attention_per_head is None
    keeping = RunStore(tmp_path / "with", {"seed": 1}, keep_per_head=True)
    keeping.write("a", before)
    after = RunStore(tmp_path / "with").read("a").generation.attention_per_head
    torch.testing.assert_close(after, before.generation.attention_per_head, atol=1e-5, rtol=1e-3)


def test_records_without_maps_hold_the_rest(tmp_path: Path) -> None:
    before = grounding(3, per_head=(2, 3))
    RunStore(tmp_path, {"seed": 1}, keep_maps=False).write("a", replace(before, measured={"x": torch.ones(2)}))
    after = RunStore(tmp_path).read("a")
    tokens = len(before.generation.token_ids)
    assert after.maps.shape == (2, 0) and after.generation.attention.shape == (tokens, 0)
    assert after.generation.attention_per_head is None
    assert_same(replace(before, maps=before.maps[:, :0]), after)
    assert torch.equal(after.measured["x"], torch.ones(2))
    with pytest.raises(GroundingError, match="but the map has 0"):
        to_grid(after.maps, after.generation.views[-1])


def test_what_was_measured_comes_back_with_the_record(tmp_path: Path) -> None:
    before = grounding(3)
    square = torch.arange(6.0).view(2, 3).T  # not contiguous
    shared = {"a": square, "b": square[:1], "points": before.points, "none": torch.zeros(0, 2)}
    store(tmp_path).write("a", replace(before, measured=shared))
    after = store(tmp_path).read("a").measured
    assert after.keys() == shared.keys()
    assert all(torch.equal(after[name], shared[name]) for name in shared)
    store(tmp_path).write("b", before)
    assert store(tmp_path).read("b").measured == {}


def test_a_folder_of_other_records_is_not_read_as_groundings(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, {"seed": 1})
    folder.write("a", Record({"x": torch.arange(3)}, {"note": "any"}))
    found = folder.read("a")
    assert torch.equal(found.tensors["x"], torch.arange(3)) and found.about == {"note": "any", "id": "a"}
    with pytest.raises(GroundingError, match=r"is damaged \('grounding'\)"):
        RunStore(tmp_path).read("a")


def test_records_are_compact(tmp_path: Path) -> None:
    before = grounding(3, text=" ".join(["star"] * 200), grid=(24, 24))
    store(tmp_path).write("a", before)
    (file,) = (tmp_path / "records").glob("*.safetensors")
    assert file.stat().st_size < 0.6 * before.generation.attention.numel() * 4


def test_ids_of_any_kind_make_file_names_and_come_back(tmp_path: Path) -> None:
    run = store(tmp_path)
    for number, id in enumerate(ODD_IDS):
        run.write(id, grounding(number))
    assert run.done() == set(ODD_IDS)
    assert run.ids() == sorted(ODD_IDS)
    assert [id for id, _ in run] == sorted(ODD_IDS)
    assert_same(grounding(1), run.read("a/b c.png"))
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "records"}
    for id in ("", "x" * 300):
        with pytest.raises(GroundingError, match=r"must encode to 1..200 characters"):
            run.write(id, grounding())


def test_errors_are_records_and_give_way_to_groundings(tmp_path: Path) -> None:
    run = store(tmp_path)
    run.write("good", grounding())
    run.write_error("bad", "the file is truncated")
    assert run.done() == {"good", "bad"}
    assert run.done(errors=False) == {"good"}
    assert run.errors() == {"bad": "the file is truncated"}
    with pytest.raises(GroundingError, match="it has an error instead: the file is truncated"):
        run.read("bad")
    run.write("bad", grounding())
    assert (run.errors(), len(run)) == ({}, 2)


def test_the_run_says_what_it_was(tmp_path: Path) -> None:
    store(tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["config"] == {"model": "tiny", "seed": 1}
    assert about["versions"]["torch"] == version("torch")
    assert about["created"].startswith("20")
    assert RunStore(tmp_path).config == about["config"]


def test_another_configuration_is_refused_unless_it_may_overwrite(tmp_path: Path) -> None:
    store(tmp_path).write("a", grounding())
    with pytest.raises(
        GroundingError, match=r"other settings: seed 1 then, 2 now; view absent then, 'base' now"
    ) as error:
        store(tmp_path, seed=2, view="base")
    assert "overwrite=True" in str(error.value)
    assert store(tmp_path).done() == {"a"}
    assert RunStore(tmp_path, {"model": "tiny", "seed": 2}, overwrite=True).done() == set()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(GroundingError, match=r"no run at .*run.json is missing"):
        RunStore(tmp_path / "none")
    with pytest.raises(GroundingError, match="must be JSON values"):
        RunStore(tmp_path, {"model": object()})
    with pytest.raises(GroundingError, match="choose one"):
        RunStore(tmp_path / "both", {}, keep_maps=False, keep_per_head=True)
    run = store(tmp_path)
    with pytest.raises(GroundingError, match=r"no record of 'x'.*the run has 0 others"):
        run.read("x")
    run.write("a", grounding())
    (file,) = (tmp_path / "records").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(GroundingError, match=r"is damaged .*delete the file and run again"):
        run.read("a")


def test_an_interrupted_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    import core.atomic as atomic

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f"a.json.tmp-{atomic._HOST}-{dead.pid}-00000000-00000000",
        "earlier process of our number": f"b.json.tmp-{atomic._HOST}-{os.getpid()}-00000000-00000000",
        "ours": f"c.json.tmp-{atomic._HOST}-{os.getpid()}-{atomic._PROCESS}-00000000",
        "alive": f"d.json.tmp-{atomic._HOST}-{os.getppid()}-00000000-00000000",
        "another machine's": "e.json.tmp-elsewhere-1-00000000-00000000",
        "not ours at all": "f.tmp-file",
    }
    for name in names.values():
        (tmp_path / name).write_bytes(b"")
    old = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / names["another machine's"], (old, old))
    removed = {path.name for path in remove_stale(tmp_path)}
    assert removed == {names[key] for key in ("dead", "earlier process of our number", "another machine's")}


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_killing_a_run_loses_nothing_finished_and_repeats_nothing_finished(tmp_path: Path) -> None:
    count, kills, rng = 150, 3, random.Random(0)
    command = [sys.executable, str(Path(__file__).with_name("write_records.py")), str(tmp_path), str(count)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    }
    log = tmp_path / "log.txt"
    finished: set[str] = set()
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        target = _lines(log) + rng.randint(3, 2 * count // kills)
        while process.poll() is None and _lines(log) < target:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        process.kill()
        assert process.wait() == -9, process.stderr.read().decode()
        now = {line.split()[1] for line in log.read_text().splitlines() if line.startswith("end")}
        assert now <= RunStore(tmp_path).done()
        assert finished <= now
        finished = now
    assert 0 < len(finished) < count, "the kills came too early or too late to test anything"
    assert subprocess.run(command, env=environment, check=True).returncode == 0

    run = RunStore(tmp_path)
    assert run.done() == {str(number) for number in range(count)}
    assert run.errors() == {str(number): f"image {number} is broken" for number in range(9, count, 10)}
    for id, record in run:
        assert_same(grounding(int(id)), record)
    assert log.read_text().count("start") <= count + kills
    ended: set[str] = set()
    for word, id in (line.split() for line in log.read_text().splitlines()):
        assert word == "end" or id not in ended, f"{id} was finished and computed again"
        ended |= {id} if word == "end" else set()
    assert not list(tmp_path.rglob("*.tmp-*"))
