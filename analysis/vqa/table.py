"""Table 3 and what lies behind it: which result belongs in which column, with intervals from the logged questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper import paper_methods, paper_row, paper_table
from analysis.results import Result
from analysis.scoring.metrics import Interval, resampled_interval
from analysis.vqa.results import TaskResult
from analysis.vqa.scoring import POPE, STATISTICS, statistic
from core.errors import GroundingError
from embedded.scenes.visual_questions import DESCRIBED, KINDS, QUESTIONS, STRATEGIES
from embedded.scenes.visual_questions import POPE as ASKED

TOLERANCE = 0.06  # of a percent; lmms-eval rounds LLaVA-Bench to one digit
OTHERWISE = {"pope_yes_ratio": "of the answers; lmms-eval's own key is the share of questions whose answer is yes"}


@dataclass(frozen=True)
class Column:
    """One column of Table 3.

    Attributes:
        name: as the paper has it.
        tasks: lmms-eval's; of several, the column is their mean.
        metric: its key in the results.
        unit: what turns the metric into percent.
    """

    name: str
    tasks: tuple[str, ...]
    metric: str
    unit: float = 100.0


COLUMNS = (
    Column("VQA, scenes", (QUESTIONS,), "accuracy"),
    Column("POPE, scenes", (ASKED,), "f1_score"),
    Column("POPE, scenes described", (DESCRIBED,), "f1_score"),
    Column("VQAv2", ("vqav2_val",), "exact_match"),
    Column("GQA", ("gqa",), "exact_match"),
    Column("VizWiz", ("vizwiz_vqa_val",), "exact_match"),
    Column("ScienceQA-IMG", ("scienceqa_img",), "exact_match"),
    Column("TextVQA", ("textvqa_val",), "exact_match"),
    Column("POPE", ("pope_random", "pope_pop", "pope_adv"), "pope_f1_score"),
    Column("POPE", ("pope",), "pope_f1_score"),
    Column("MMBench", ("mmbench_en_dev",), "gpt_eval_score", 1.0),
    Column("MMBench", ("mmbench_en_dev_static",), "gpt_eval_score", 1.0),
    Column("LLaVA-Bench", ("llava_in_the_wild",), "gpt_eval_llava_all", 1.0),
)
NAMES = tuple(dict.fromkeys(column.name for column in COLUMNS))
PAPER = NAMES[3:]


@dataclass(frozen=True)
class Measured:
    """A metric in percent with its interval (nan without logs), of `n` questions about `n_images` pictures (None where
    the logs do not name them); `note` says what stands in the way of an interval."""

    interval: Interval
    n: int | None
    n_images: int | None = None
    note: str = ""


def table3(results: Mapping[str, Mapping[str, TaskResult]], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """A row for each model, in percent: `method`, those of our sets that any was asked, and the paper's benchmarks.

    Args:
        results: of each model by its label, as `read_results` gives them.
    """
    rows = []
    for label, found in results.items():
        row: dict[str, Any] = {"method": label}
        for column in COLUMNS:
            if column.name not in row and (measured := measure(found, column, draws=draws, seed=seed)):
                row[column.name] = measured.interval.value
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["method", *NAMES])
    return frame[["method", *(name for name in NAMES if name in PAPER or frame[name].notna().any())]]


def vqa_results(metrics: pd.DataFrame, models: Mapping[str, str]) -> list[Result]:
    """Table 3 for the report's summary: of each benchmark the number that the table shows, with its interval.

    Args:
        metrics: of `metrics_table`.
        models: of our rows by label; other rows were measured elsewhere.
    """
    found = []
    for row in metrics.to_dict("records"):
        shown = {column.name: column.metric for column in COLUMNS if column.metric == row["metric"]}
        if row["benchmark"] not in shown:
            continue
        model = models.get(row["method"], "measured elsewhere")
        beside = paper_row(3, f"{row['method']} {model}") if row["benchmark"] in PAPER else None
        known = beside is not None and pd.notna(beside[row["benchmark"]])
        found.append(
            Result(
                item="Table 3",
                quantity=f"{row['benchmark']} ({row['metric'].replace('_', ' ')}, %)",
                method=row["method"],
                model=model,
                interval=Interval(row["percent"], row["low"], row["high"]),
                paper=float(beside[row["benchmark"]]) if known else None,
                paper_method=beside["method"] if known else "",
                note="" if known else "the paper's benchmarks are other questions; its rows stand in the section",
            )
        )
    return found


def metrics_table(results: Mapping[str, Mapping[str, TaskResult]], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every metric behind the table: a row each, with its interval and how many questions and pictures it is of.

    Returns:
        `method`, `benchmark`, `metric`, `percent`, `low`, `high`, `n_questions`, `n_pictures`, `note`.
    """
    rows = []
    for label, found in results.items():
        for column in _all_columns(found):
            if measured := measure(found, column, draws=draws, seed=seed):
                ends = measured.interval
                about = (measured.n, measured.n_images, measured.note)
                rows.append((label, column.name, column.metric, ends.value, ends.low, ends.high, *about))
    names = ["method", "benchmark", "metric", "percent", "low", "high", "n_questions", "n_pictures", "note"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.astype({"n_questions": "Int64", "n_pictures": "Int64"})


def measure(found: Mapping[str, TaskResult], column: Column, *, draws: int = 2000, seed: int = 0) -> Measured | None:
    """A column's number, with a 95 % bootstrap interval over pictures (over questions where the logs do not name their
    pictures) where the logs give the same number; None where a task or the metric is missing.
    """
    tasks = [found[task] for task in column.tasks if task in found and column.metric in found[task].metrics]
    if len(tasks) < len(column.tasks):
        return None
    n = None if any(result.n is None for result in tasks) else sum(result.n for result in tasks)
    told = column.unit * float(np.mean([result.metrics[column.metric] for result in tasks]))
    alone = Interval(told, np.nan, np.nan)
    if column.metric not in STATISTICS:
        return Measured(alone, n, note="no interval: not computed from the logs")
    if any(result.samples is None for result in tasks):
        return Measured(alone, n, note="no interval: the questions were not logged")
    sums, named = _sums(column.metric, tasks)
    value, count = statistic(column.metric).value, statistic(column.metric).count
    n = n if count is None else int(sums[..., count].sum())

    def resampled(counts: np.ndarray) -> np.ndarray:
        return np.mean([value(counts @ each) for each in sums], axis=0)

    ends = resampled_interval(resampled, sums.shape[1], draws=draws, seed=seed)
    percent = Interval(100 * ends.value, 100 * ends.low, 100 * ends.high)
    if column.metric not in OTHERWISE and abs(percent.value - told) > TOLERANCE:
        return Measured(alone, n, note=f"no interval: the logs give {percent.value:.1f}, are they of another run?")
    return Measured(percent, n, sums.shape[1] if named else None, OTHERWISE.get(column.metric, ""))


def _sums(metric: str, tasks: Sequence[TaskResult]) -> tuple[np.ndarray, bool]:
    """What each picture's questions add to each task's sums, [tasks, pictures, parts], and whether pictures are named.

    Raises:
        GroundingError: a log without the metric, or with another value than lmms-eval leaves there.
    """
    parts = statistic(metric).parts
    rows: list[tuple[int, Any, Sequence[float]]] = []
    named = True
    for number, result in enumerate(tasks):
        for sample in result.samples or []:
            logged = sample.get(metric)
            try:
                own = parts(logged)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise GroundingError(
                    f"{result.path.parent}: the log of {result.task}, question {sample['doc_id']}, has {logged!r} as "
                    f"{metric!r}; lmms-eval writes something else there"
                ) from error
            picture = logged.get("image_id") if isinstance(logged, Mapping) else None
            named = named and picture is not None
            rows.append((number, (result.task, sample["doc_id"]) if picture is None else picture, own))
    places = {key: place for place, key in enumerate(dict.fromkeys(key for _, key, _ in rows))}
    sums = np.zeros((len(tasks), len(places), len(rows[0][2]) if rows else 1))
    for number, key, own in rows:
        sums[number, places[key]] += own
    return sums, named and bool(rows)


def _all_columns(found: Mapping[str, TaskResult]) -> list[Column]:
    """The table's columns, then what else is known of the same tasks."""
    further = [Column(f"VQA, scenes: {kind}", (QUESTIONS,), kind) for kind in KINDS]
    further.append(Column("VQA, scenes: whole sentence", (QUESTIONS,), "sentence"))
    for name, task in (("POPE, scenes", ASKED), ("POPE, scenes described", DESCRIBED)):
        for strategy in STRATEGIES:
            further += [Column(f"{name}: {strategy}", (task,), f"{strategy}_{metric}") for metric in POPE]
    for task in ("pope", "pope_random", "pope_pop", "pope_adv"):
        further += [Column(f"POPE: {task}", (task,), f"pope_{metric}") for metric in POPE]
    return [*COLUMNS, *further]


def paper_rows() -> pd.DataFrame:
    """The paper's Table 3 with `table3`'s columns, as reported."""
    return paper_table(3).assign(method=paper_methods(3))


def reading(frame: pd.DataFrame) -> str:
    """A sentence on each model of `metrics_table`'s: what it gets right, and whether it can say both yes and no."""
    return "\n".join(
        f"{label}: {_reading(own.set_index(['benchmark', 'metric']))}"
        for label, own in frame.groupby("method", sort=False)
    )


def _reading(own: pd.DataFrame) -> str:
    def told(benchmark: str, metric: str) -> str:
        if (benchmark, metric) not in own.index:
            return "–"
        row = own.loc[(benchmark, metric)]
        return Interval(row["percent"] / 100, row["low"] / 100, row["high"] / 100).percent()

    if ("VQA, scenes", "accuracy") not in own.index:
        return ", ".join(f"{name} {row['percent']:.1f}" for (name, _), row in own.iterrows() if name in NAMES)
    sentences = [f"{told('VQA, scenes', 'accuracy')} of the answers are right."]
    for name, how in (("POPE, scenes", "Asked for"), ("POPE, scenes described", "Read from its descriptions,")):
        accuracy, yes = (told(f"{name}: adversarial", f"adversarial_{metric}") for metric in ("accuracy", "yes_ratio"))
        sentences.append(f"{how} what is there and what is often beside it: {accuracy} right, {yes} yes.")
    return " ".join(sentences)
