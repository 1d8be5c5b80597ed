import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tiny_groundings import nlp
from tiny_sam import random_sam, segmenter

from core.errors import GroundingError
from core.masks import Segmenter
from core.options import GroundOptions
from core.provenance import fingerprint, run_config
from core.records import RunStore
from core.run import ground_dataset

ANSWER = "The image features a cat and a red cup on the table."


@pytest.fixture
def photographs(tmp_path: Path) -> list[tuple[str, Path]]:
    """Five files of several shapes; "c" is truncated."""
    items = []
    crops = {"a": data.chelsea()[:200, :300], "b": data.coffee()[:, :250], "c": data.astronaut(), "d": data.rocket()}
    for name, pixels in {**crops, "e/1": data.cat()}.items():
        path = tmp_path / f"{name.replace('/', '_')}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).resize((120, 90 if name != "b" else 150)).save(path)
        items.append((name, path))
    content = items[2][1].read_bytes()
    items[2][1].write_bytes(content[: len(content) // 2])
    return items


def run(items, directory: Path, lmms, **options):
    parts = {"lmm": lmms["llava"], "segmenter": segmenter(), "nlp": nlp()}
    store = RunStore(directory, run_config(**parts, prompt="What is it?", seed=0))
    answers = {id: ANSWER for id, _ in items}
    return store, ground_dataset(
        items, "What is it?", **parts, store=store, **({"answers": answers, "progress": False} | options)
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_broken_image_becomes_an_error_record_and_the_rest_is_grounded(
    photographs, tmp_path, lmms, batch_size
) -> None:
    store, summary = run(photographs, tmp_path / "run", lmms, batch_size=batch_size)
    assert summary.grounded == ("a", "b", "d", "e/1")
    assert summary.failed == ("c",)
    assert "c.png" in store.errors()["c"]
    for id in summary.grounded:
        record = store.read(id)
        assert record.image_size == ((150, 120) if id == "b" else (90, 120))
        assert [phrase.root for phrase in record.phrases] == ["image", "cat", "cup", "table"]
        assert all(codes[0]["size"] == list(record.image_size) for codes in record.masks)


def test_a_second_call_repeats_nothing_and_retries_errors_when_asked(photographs, tmp_path, lmms) -> None:
    store, _ = run(photographs[:2], tmp_path / "run", lmms)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").iterdir()}
    _, second = run(photographs, tmp_path / "run", lmms)
    assert (second.skipped, second.grounded, second.failed) == (("a", "b"), ("d", "e/1"), ("c",))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "records").iterdir()}
    assert {name: after[name] for name in before} == before
    _, third = run(photographs, tmp_path / "run", lmms)
    assert (third.grounded, third.failed, len(third.skipped)) == ((), (), 5)
    Image.fromarray(data.astronaut()).resize((120, 90)).save(photographs[2][1])
    _, fourth = run(photographs, tmp_path / "run", lmms, retry_errors=True)
    assert fourth.grounded == ("c",)
    assert store.errors() == {}


def test_a_run_that_stops_half_way_keeps_what_it_had(photographs, tmp_path, lmms) -> None:
    def interrupted():
        yield from photographs[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts = {"lmm": lmms["llava"], "segmenter": segmenter(), "nlp": nlp()}
        store = RunStore(tmp_path / "run", run_config(**parts, prompt="What is it?", seed=0))
        answers = dict.fromkeys("ab", ANSWER)
        ground_dataset(interrupted(), "What is it?", **parts, store=store, answers=answers, progress=False)
    _, rest = run(photographs, tmp_path / "run", lmms)
    assert rest.skipped == ("a", "b")


def test_batches_give_the_records_of_single_images(photographs, tmp_path, lmms) -> None:
    items = [item for item in photographs if item[0] != "c"]
    one, _ = run(items, tmp_path / "one", lmms, batch_size=1)
    many, _ = run(items, tmp_path / "many", lmms, batch_size=4)
    for id in one.ids():
        first, second = one.read(id), many.read(id)
        torch.testing.assert_close(second.generation.attention, first.generation.attention, atol=1e-5, rtol=1e-3)
        assert second.phrases == first.phrases


def test_generated_answers_are_recorded_with_their_provenance(photographs, tmp_path, lmms) -> None:
    store, summary = run(photographs[:1], tmp_path / "run", lmms, answers=None, max_new_tokens=6)
    assert summary.grounded == ("a",)
    record = store.read("a")
    assert 1 <= len(record.generation.token_ids) <= 6
    assert record.generation.model["family"] == "llava"
    config = store.config
    assert config["model"]["name_or_path"] == lmms["llava"].name
    assert re.fullmatch("[0-9a-f]{16}", config["model"]["fingerprint"])
    assert (config["segmenter"]["name"], config["seed"]) == ("tiny", 0)


@pytest.mark.parametrize(("options", "last"), [({}, 2), ({"end_of_sequence": False}, None)])
def test_given_answers_are_ended_or_not(photographs, tmp_path, lmms, options, last) -> None:
    store, _ = run(photographs[:2], tmp_path / "run", lmms, batch_size=2, **options)
    ids = lmms["llava"].processor.tokenizer(ANSWER, add_special_tokens=False).input_ids
    for id in ("a", "b"):
        assert store.read(id).generation.token_ids.tolist() == ids + ([] if last is None else [last])


def test_other_weights_of_the_same_name_are_another_configuration(photographs, tmp_path, lmms) -> None:
    run(photographs[:1], tmp_path / "run", lmms)
    other = Segmenter(random_sam(seed=1), name="tiny")
    config = run_config(lmm=lmms["llava"], segmenter=other, nlp=nlp(), prompt="What is it?", seed=0)
    with pytest.raises(GroundingError, match=r"other settings: segmenter\.fingerprint '"):
        RunStore(tmp_path / "run", config)
    assert fingerprint(random_sam(seed=1)) == fingerprint(random_sam(seed=1)) != fingerprint(random_sam())


def test_every_option_of_ground_reaches_it(photographs, tmp_path, lmms) -> None:
    store, _ = run(photographs[:1], tmp_path / "run", lmms, heads=[0], mask_choice="all", normalization="none")
    record = store.read("a")
    assert len(record.masks[0]) == 3
    assert record.options == GroundOptions(heads=(0,), mask_choice="all", normalization="none")


def test_refusals(photographs, tmp_path, lmms) -> None:
    with pytest.raises(GroundingError, match="'a' appears twice"):
        run([photographs[0], photographs[0]], tmp_path / "run", lmms)
    with pytest.raises(GroundingError, match="no answer for the id 'b'"):
        run(photographs[:2], tmp_path / "other", lmms, answers={"a": ANSWER})
    for options, message in (
        ({"mask_choice": "first"}, "mask_choice 'first' is not known"),
        ({"masks": "last"}, "unknown options masks; grounding takes"),
        ({"view": "tiles"}, "no view is called 'tiles'"),
        ({"heads": [99]}, r"head selection \[99\]"),
        ({"options": "refrence_v1"}, "no preset is called 'refrence_v1'; choose one of paper, "),
    ):
        with pytest.raises(GroundingError, match=message):
            run(photographs[:1], tmp_path / "options", lmms, **options)
        assert not list((tmp_path / "options" / "records").iterdir()), "a wrong option became the image's error"
    with pytest.raises(GroundingError, match=r"\['do_sample'\] have no effect"):
        run(photographs[:1], tmp_path / "fourth", lmms, generation_options={"do_sample": True})
    with pytest.raises(GroundingError, match="batch_size must be at least 1"):
        run(photographs[:2], tmp_path / "third", lmms, batch_size=0)
