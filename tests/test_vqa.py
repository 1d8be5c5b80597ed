"""Questions about scenes, POPE's polls, scores of answers, and folders of results."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.figures import drawn_numbers
from analysis.paper import paper_table
from analysis.settings import check_folders
from analysis.vqa.figures import plot_answers, plot_scores
from analysis.vqa.looks import first_questions, look
from analysis.vqa.results import answers, differing_answers, read_results
from analysis.vqa.scoring import POPE, STATISTICS, score_description, score_presence, statistic, yes_or_no
from analysis.vqa.settings import VqaSettings
from analysis.vqa.table import COLUMNS, PAPER, Column, measure, metrics_table, paper_rows, reading, table3
from core.errors import GroundingError
from core.generation import Generation
from core.geometry import View
from embedded.scenes.captions import NUMBERS, place
from embedded.scenes.glyphs import CATEGORIES
from embedded.scenes.scenes import make_scene
from embedded.scenes.visual_questions import KINDS, STRATEGIES, kind_of, poll, short_answer, write_visual_questions

# ---- the data


def test_short_answers_are_what_the_scene_holds():
    for index in range(40):
        scene = make_scene("test", index, size=(90, 140))
        by_name = {f"{thing.colour} {thing.category}": thing for thing in scene.objects}
        present = {thing.category for thing in scene.objects}
        for question, sentence in scene.questions:
            kind = kind_of(question)
            short = short_answer(kind, sentence)
            if kind == "presence":
                assert short == ("yes" if re.match(r"Is there an? (\w+)", question)[1] in present else "no")
            elif kind == "number":
                assert short == NUMBERS[len(scene.objects)]
            elif kind == "background":
                assert short == f"{scene.texture} {scene.ground}"
            elif kind == "color":
                assert short in {t.colour for t in scene.objects if t.category == question.split()[-1].strip("?")}
            else:
                thing = by_name[re.match(r"the (\w+ \w+) is", sentence.lower())[1]]
                assert place(thing) == f"{short} of the image"


@pytest.mark.parametrize(
    ("kind", "said", "short"),
    [
        ("presence", "Yes, there is a red star in the image.", "yes"),
        ("presence", "Nothing of the kind.", ""),
        ("number", "In total, there is one object in the image.", "one"),
        ("place", "The red star is in the top left corner of the image.", "in the top left corner"),
        ("place", "The red star is small.", ""),
        ("color", "The star is red.", "red"),
        ("color", "The star is red and blue.", ""),
        ("background", "The objects are on a plain gray background.", "plain gray"),
        ("number", "", ""),
    ],
)
def test_an_answer_in_short(kind, said, short):
    assert short_answer(kind, said) == short


def test_other_questions_are_refused():
    with pytest.raises(GroundingError, match="is no question of the scenes; they ask for presence, place"):
        kind_of("Why is the star red?")
    with pytest.raises(GroundingError, match="no questions of the kind 'why'"):
        short_answer("why", "Because.")


def test_popes_three_ways_by_hand():
    pictures = [["star", "moon"], ["star", "moon"], ["star", "flag"], ["crown"]]
    star_moon, _, star_flag, crown = poll(pictures, categories=["crown", "flag", "moon", "star", "rook"])
    assert star_moon.present == ("moon", "star")  # most often in a picture: star 3, moon 2; then crown and flag with 1
    assert star_moon.absent["popular"] == ("crown", "flag")
    assert star_moon.absent["adversarial"] == ("flag", "crown")  # the flag is beside the star once, the crown never
    assert star_flag.absent["popular"] == star_flag.absent["adversarial"] == ("moon", "crown")
    assert crown.absent["popular"] == crown.absent["adversarial"] == ("star",)


@given(
    st.lists(st.lists(st.sampled_from(CATEGORIES), min_size=0, max_size=4), min_size=1, max_size=8), st.integers(0, 5)
)
def test_polls_ask_for_as_many_absent_things_as_present_ones(pictures, seed):
    found = poll(pictures, seed=seed)
    assert found == poll(pictures, seed=seed)
    for picture, each in zip(pictures, found, strict=True):
        assert set(each.present) == set(picture)
        for strategy in STRATEGIES:
            chosen = each.absent[strategy]
            assert len(set(chosen)) == len(chosen) == len(each.present) and not set(chosen) & set(picture)
        assert each.absent["popular"] == naive_choice(pictures, picture, beside=False)
        assert each.absent["adversarial"] == naive_choice(pictures, picture, beside=True)


def naive_choice(pictures, picture, *, beside):
    """POPE's definition, one category at a time."""
    left, chosen = [category for category in CATEGORIES if category not in picture], []
    while len(chosen) < len(set(picture)):
        best, best_score = None, (-1, -1)
        for category in left:
            frequency = sum(category in other for other in pictures)
            together = sum(mine in other and category in other for mine in set(picture) for other in pictures)
            score = (together, frequency) if beside else (frequency, 0)
            if score > best_score:
                best, best_score = category, score
        chosen.append(best)
        left.remove(best)
    return tuple(chosen)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_visual_questions(tmp_path_factory.mktemp("vqa"), split="test", n=5)


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_files_hold_what_they_promise(data):
    asked, polled, described = (rows(data, name) for name in ("scenes_vqa", "scenes_pope", "scenes_pope_described"))
    assert {row["kind"] for row in asked} <= set(KINDS) and all(row["answer"] for row in asked)
    assert all(row["image"] == str(data / "images" / f"{row['image_id']}.png") for row in asked + polled + described)
    assert len({row["question_id"] for row in polled}) == len(polled)
    for strategy in STRATEGIES:
        member = [row["answer"] for row in polled if strategy in row["strategies"]]
        assert member.count("yes") == member.count("no") > 0
    flat = [(row["image_id"], each["category"], each["answer"]) for row in described for each in row["poll"]]
    assert flat == [(row["image_id"], row["question_id"].split("/")[1], row["answer"]) for row in polled]
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    write_visual_questions(data, split="test", n=5)
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


# ---- scores


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Yes, there is a star in the image.", "yes"),
        ("No, there is no star in the image.", "no"),
        ("There is not one. Yes!", "no"),
        ("It is there. No doubt.", "yes"),
        ("nothing", "yes"),  # POPE looks for three words and no others
        ("", "yes"),
    ],
)
def test_yes_or_no_is_read_as_pope_reads_sentences(said, read):
    assert yes_or_no(said) == read


def polled(answers_and_truths, strategies=STRATEGIES):
    doc = {"question_id": "q", "image_id": "i", "strategies": list(strategies)}
    return [score_presence(doc | {"answer": truth}, [said]) for said, truth in answers_and_truths]


def test_popes_numbers_by_hand():
    logged = polled([("Yes.", "yes"), ("Yes.", "yes"), ("No.", "yes"), ("Yes.", "no"), ("No.", "no")])
    found = {name: statistic(f"random_{name}").of([each[f"random_{name}"] for each in logged]) for name in POPE}
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1_score": 2 / 3, "yes_ratio": 3 / 5}
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sets(st.sampled_from(STRATEGIES))), min_size=1, max_size=30))
def test_popes_numbers_against_a_naive_count(questions):
    word = {True: "yes", False: "no"}
    logged = [polled([(word[said].title(), word[true])], chosen)[0] for said, true, chosen in questions]
    f1 = []
    for strategy in STRATEGIES:
        own = [(said, true) for said, true, chosen in questions if strategy in chosen]
        hits = sum(said and true for said, true in own)
        yes, true = sum(said for said, _ in own), sum(true for _, true in own)
        expected = {
            "accuracy": sum(a == b for a, b in own) / len(own) if own else 0.0,
            "precision": hits / yes if yes else 0.0,
            "recall": hits / true if true else 0.0,
            "yes_ratio": yes / len(own) if own else 0.0,
        }
        both = expected["precision"] + expected["recall"]
        expected["f1_score"] = 2 * expected["precision"] * expected["recall"] / both if both else 0.0
        found = {
            name: statistic(f"{strategy}_{name}").of([each[f"{strategy}_{name}"] for each in logged]) for name in POPE
        }
        assert found == pytest.approx(expected)
        f1.append(expected["f1_score"])
    assert statistic("f1_score").of([each["f1_score"] for each in logged]) == pytest.approx(np.mean(f1))


def test_a_description_says_yes_to_what_it_names():
    row = {"question_id": "1", "image_id": "1"}
    row["poll"] = [
        {"category": name, "answer": truth, "strategies": ["random"]}
        for name, truth in (("star", "yes"), ("moon", "no"), ("rook", "no"), ("flag", "yes"))
    ]
    value = score_description(row, ["The image shows two stars and a rook; the moonlight is pale."])["random_f1_score"]
    assert [each["prediction"] for each in value["poll"]] == ["yes", "no", "yes", "no"]
    assert statistic("random_accuracy").of([value]) == 0.5 and statistic("popular_accuracy").of([value]) == 0.0


def test_an_unknown_metric_is_refused():
    with pytest.raises(GroundingError, match="how 'bleu' is computed is not known here"):
        statistic("bleu")


# ---- folders of results


def write_run(folder, results, samples=None, *, date="20260101_000000", counts=None):
    """What lmms-eval leaves: a results file, and logs where asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = counts or {task: len((samples or {}).get(task, [])) for task in results}
    content = {"results": {}, "config": {"model": "some_model", "model_args": "pretrained=x"}}
    content["n-samples"] = {task: {"original": n, "effective": n} for task, n in counts.items()}
    for task, metrics in results.items():
        content["results"][task] = {"alias": task} | {f"{name},none": value for name, value in metrics.items()}
        content["results"][task] |= {f"{name}_stderr,none": "N/A" for name in metrics}
    (folder / f"{date}_results.json").write_text(json.dumps(content))
    for task, logged in (samples or {}).items():
        lines = [json.dumps({"doc_id": number, "filtered_resps": "a"} | each) for number, each in enumerate(logged)]
        (folder / f"{date}_samples_{task}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_any_folder_of_lmms_eval_gives_table_3s_columns(tmp_path):
    scores = [1.0, 0.0, 0.9, 0.3]
    pope = [
        {"score": float(a == b), "prediction": a, "ground_truth": b}
        for a, b in (("yes", "yes"), ("no", "yes"), ("maybe", "no"))
    ]
    bench = [{"scores": [8, 6]}, {"scores": [10, 3]}]
    samples = {
        "gqa": [{"exact_match": score} for score in scores],
        "pope": [{f"pope_{name}": each for name in POPE} for each in pope],
        "llava_in_the_wild": [{"gpt_eval_llava_all": each} for each in bench],
    }
    results = {
        "gqa": {"exact_match": np.mean(scores)},
        "pope": {
            "pope_accuracy": 1 / 3,
            "pope_precision": 1.0,
            "pope_recall": 0.5,
            "pope_f1_score": 2 / 3,
            "pope_yes_ratio": 2 / 3,
        },
        "llava_in_the_wild": {"gpt_eval_llava_all": 50.0},
        "mmbench_en_dev": {"gpt_eval_score": 61.5},
        "vqav2_val": {"exact_match": 0.75},
    }
    counts = {task: len(samples.get(task, [])) or 7 for task in results}
    found = {"other": read_results(write_run(tmp_path / "run" / "org__model", results, samples, counts=counts))}
    row = table3(found).iloc[0]
    expected = {"GQA": 55.0, "POPE": 200 / 3, "LLaVA-Bench": 50.0, "MMBench": 61.5, "VQAv2": 75.0}
    assert row[list(expected)].to_dict() == pytest.approx(expected) and row[["VizWiz", "TextVQA"]].isna().all()
    metrics = metrics_table(found).set_index(["benchmark", "metric"])
    assert metrics.loc[("GQA", "exact_match"), "n_questions"] == 4
    low, high = metrics.loc[("GQA", "exact_match"), ["low", "high"]]
    assert 0 <= low < 55 < high <= 100
    assert "not logged" in metrics.loc[("VQAv2", "exact_match"), "note"]
    assert metrics.loc[("VQAv2", "exact_match"), "n_questions"] == 7
    assert "not computed from the logs" in metrics.loc[("MMBench", "gpt_eval_score"), "note"]
    yes = metrics.loc[("POPE: pope", "pope_yes_ratio")]  # one of three answers, where the key counts the truth
    assert yes["percent"] == pytest.approx(100 / 3) and "lmms-eval's own key" in yes["note"]
    assert "GQA 55.0" in reading(metrics_table(found))


def test_popes_three_sets_are_averaged_and_resampled(tmp_path):
    values = {"pope_random": "yes", "pope_pop": "yes", "pope_adv": "no"}
    samples = {
        task: [{"pope_f1_score": {"score": float(said == "yes"), "prediction": said, "ground_truth": "yes"}}] * 3
        for task, said in values.items()
    }
    results = {task: {"pope_f1_score": float(said == "yes")} for task, said in values.items()}
    found = read_results(write_run(tmp_path, results, samples))
    column = next(column for column in COLUMNS if column.tasks == ("pope_random", "pope_pop", "pope_adv"))
    measured = measure(found, column)
    assert measured.interval.value == pytest.approx(200 / 3) and measured.n == 9 and measured.n_images is None
    assert measure({"pope_random": found["pope_random"]}, column) is None


def test_intervals_resample_pictures_where_the_logs_name_them(tmp_path):
    logged = [
        {"accuracy": {"score": float(image < 5), "image_id": str(image)}} for image in range(10) for _ in range(4)
    ]
    found = read_results(write_run(tmp_path, {"scenes_vqa": {"accuracy": 0.5}}, {"scenes_vqa": logged}))
    column = Column("VQA, scenes", ("scenes_vqa",), "accuracy")
    measured = measure(found, column)
    assert (measured.n, measured.n_images) == (40, 10)
    draws = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=4000)[:, :5].sum(axis=1) * 10.0
    assert measured.interval.low == pytest.approx(np.quantile(draws, 0.025), abs=10)
    assert measured.interval.high == pytest.approx(np.quantile(draws, 0.975), abs=10)


def test_logs_of_another_run_give_no_interval(tmp_path):
    logged = {"gqa": [{"exact_match": 1.0}, {"exact_match": 0.0}]}
    found = read_results(write_run(tmp_path, {"gqa": {"exact_match": 0.9}}, logged))
    measured = measure(found, Column("GQA", ("gqa",), "exact_match"))
    assert measured.interval.value == pytest.approx(90.0) and np.isnan(measured.interval.low)
    assert measured.note == "no interval: the logs give 50.0, are they of another run?"


def test_the_newest_file_of_each_task_counts(tmp_path):
    write_run(tmp_path / "a", {"gqa": {"exact_match": 0.1}, "pope": {"pope_f1_score": 0.2}}, date="20260101_000000")
    write_run(tmp_path / "b", {"gqa": {"exact_match": 0.3}, "group": {}}, date="20260201_000000")
    found = read_results(tmp_path)
    assert {task: result.metrics for task, result in found.items()} == {
        "gqa": {"exact_match": 0.3},
        "pope": {"pope_f1_score": 0.2},
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "no *_results.json in"),
        ("1_results.json", '{"results": {', "1_results.json is not JSON"),
        ("1_results.json", "[1]", "has no 'results'; is it a results file of lmms-eval?"),
        ("1_results.json", '{"results": {"gqa": 3}}', "the results of 'gqa' are no mapping"),
    ],
)
def test_malformed_folders_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(GroundingError, match=re.escape(message)):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": 1, "filt', "line 2 is not JSON"),
        ('{"doc": 1}', "line 2: no doc_id and filtered_resps"),
        ("[]", "line 2: no doc_id"),
    ],
)
def test_malformed_logs_are_refused(tmp_path, line, message):
    write_run(tmp_path, {"gqa": {"exact_match": 1.0}}, {"gqa": [{"exact_match": 1.0}]})
    log = tmp_path / "20260101_000000_samples_gqa.jsonl"
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(GroundingError, match=re.escape(message)):
        read_results(tmp_path)


def test_a_log_without_the_metric_is_refused(tmp_path):
    found = read_results(write_run(tmp_path, {"pope": {"pope_f1_score": 1.0}}, {"pope": [{"pope_f1_score": 1.0}]}))
    with pytest.raises(GroundingError, match=re.escape("has 1.0 as 'pope_f1_score'; lmms-eval writes")):
        table3({"x": found})


def test_answers_are_compared_question_by_question(tmp_path):
    said = [[{"filtered_resps": text} for text in texts] for texts in (("a", "b", "c"), ("a", "B", "c"), ("a", "b"))]
    runs = [
        read_results(write_run(tmp_path / str(n), {"gqa": {"exact_match": 0.0}}, {"gqa": each}))
        for n, each in enumerate(said)
    ]
    assert len(answers(runs[0])) == 3 and differing_answers(runs[0], runs[0]).empty
    changed = differing_answers(runs[0], runs[1])
    assert changed[["question", "first", "second"]].values.tolist() == [[1, "b", "B"]]
    with pytest.raises(GroundingError, match=re.escape("different questions (3 and 2 of them)")):
        differing_answers(runs[0], runs[2])
    unlogged = read_results(write_run(tmp_path / "unlogged", {"gqa": {"exact_match": 0.0}}))
    with pytest.raises(GroundingError, match="no logged answers of gqa; run lmms-eval with --log_samples"):
        answers(unlogged)


def test_the_papers_rows_have_the_tables_columns():
    assert list(PAPER) == list(paper_table(3).columns[4:])
    paper = paper_rows()
    assert paper["method"].tolist()[-2:] == ["LLaVA-1.5, CLIP", "DiffLMM, DM"] and set(PAPER) <= set(paper.columns)
    empty = table3({})
    assert empty.empty and list(empty.columns) == ["method", *PAPER]
    assert metrics_table({}).empty and reading(metrics_table({})) == ""


def test_every_statistic_has_a_column_or_a_task():
    known = {column.metric for column in COLUMNS} | set(KINDS) | {"sentence"}
    assert {name for name in STATISTICS if not name.startswith((*STRATEGIES, "pope_"))} <= known


# ---- settings, looks and figures


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "dev"}, "split is 'dev'; choose one of train, val, test"),
        ({"loading": {"batch_size": 0}}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"loading": {"batch_size": "auto"}}, "give batch_size a whole number"),
        ({"n_images": 0}, "the embedded scenes have no end"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wrong, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        VqaSettings(**{"output_dir": str(tmp_path), "n_images": 3} | wrong)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": 3}, "results has 'a': 3"),
        ({"own": "x"}, "which is a row of our own"),
        ({"": "x"}, "give `label: folder`"),
    ],
)
def test_wrong_result_folders_are_refused(results, message):
    with pytest.raises(GroundingError, match=re.escape(message)):
        check_folders("results", ["own"], results)


def generation(text, spans, attention):
    import torch

    view = View("image", torch.arange(6).view(2, 3), (10.0, 0.0, 130.0, 80.0))
    ids = torch.zeros(len(spans), dtype=torch.int64)
    return Generation(
        text,
        ids,
        ids[:0],
        torch.tensor(attention).reshape(-1, 6),
        (view,),
        torch.tensor(spans).long().reshape(-1, 2),
        (80, 140),
    )


def test_a_map_is_read_at_the_words_that_answer():
    maps = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = look(
        {"question": "What color is the star?", "answer": "red"},
        generation("The star is red.", [(0, 3), (3, 8), (8, 11), (11, 16)], maps.tolist()),
    )
    assert found["words"] == "red" and found["right"] and found["box"] == (10.0, 0.0, 130.0, 80.0)
    assert found["grid"].tolist() == maps[3].reshape(2, 3).tolist()
    denied = look(
        {"question": "Is there a star in the image?", "answer": "yes"},
        generation("No star.", [(0, 2), (2, 5), (5, 7), (7, 8)], maps.tolist()),
    )
    assert denied["words"] == "star" and not denied["right"]
    assert denied["grid"].tolist() == maps[1:3].mean(axis=0).reshape(2, 3).tolist()
    unsaid = look({"question": "How many objects are there?", "answer": "two"}, generation("", [], maps[:0].tolist()))
    assert unsaid["words"] == "" and unsaid["grid"].tolist() == np.zeros((2, 3)).tolist()


def test_the_first_questions_are_about_one_picture(data, tmp_path):
    found = first_questions(data)
    assert {row["image_id"] for row in found} == {"test_000000"} and 5 <= len(found) <= 6
    with pytest.raises(GroundingError, match="write_visual_questions makes it"):
        first_questions(tmp_path)


def test_figures_show_the_numbers():
    names = {"VQA, scenes": ["accuracy"]} | {f"VQA, scenes: {kind}": [kind] for kind in KINDS}
    for source in ("POPE, scenes", "POPE, scenes described"):
        names |= {source: ["f1_score"]} | {f"{source}: {s}": [f"{s}_{name}" for name in POPE] for s in STRATEGIES}
    frame = pd.DataFrame(
        [
            (method, benchmark, metric, 10.0 * number + 40, 30.0, 70.0)
            for number, method in enumerate(("one", "two"))
            for benchmark, metrics in names.items()
            for metric in metrics
        ],
        columns=["method", "benchmark", "metric", "percent", "low", "high"],
    )
    drawn = drawn_numbers(plot_scores(frame))
    bars = drawn[drawn["kind"] == "bar"].groupby("artist")["y"]
    assert bars.count().to_dict() == {"one": 18, "two": 18} and bars.mean().to_dict() == {"one": 40.0, "two": 50.0}
    ends = drawn[(drawn["kind"] == "line") & drawn["artist"].str.startswith("_")]["y"]
    assert set(ends) == {30.0, 70.0}
    assert drawn_numbers(plot_scores(frame.iloc[:0])).query("kind == 'bar'").empty
    grids = [np.full((2, 3), 0.5), np.eye(2, 3)]
    about = {"question": "Is there a star?", "answer": "No.", "words": "star", "expected": "yes", "right": False}
    figure = plot_answers(
        np.zeros((80, 140, 3)), [about | {"grid": grid, "box": (10.0, 0.0, 130.0, 80.0)} for grid in grids]
    )
    maps = drawn_numbers(figure).query("kind == 'map'")
    assert maps["value"].tolist() == [*grids[0].ravel(), *grids[1].ravel()]
    assert len({image.norm for ax in figure.axes for image in ax.images if image.get_gid() != "picture"}) == 1
