"""What an answer counts for: VQA's and POPE's scores of single questions, and numbers of a whole set from them.

lmms-eval calls `score_question`, `score_presence`, `score_description` and `aggregate` by the names in `tasks/*.yaml`;
the notebook computes the same numbers, with intervals, from the logs that lmms-eval leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import GroundingError
from embedded.scenes.visual_questions import KINDS, STRATEGIES, short_answer

POPE = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
POPE_METRICS = ("f1_score", *(f"{strategy}_{name}" for strategy in STRATEGIES for name in POPE))


@dataclass(frozen=True)
class Statistic:
    """A number of a set of questions, through sums over its questions.

    Attributes:
        parts: what one question's logged value adds to the sums; zeros where it does not belong to the set.
        value: from the sums [..., parts] to the number [...].
        count: which part counts the questions that belong; None where every logged one does.
    """

    parts: Callable[[Any], Sequence[float]]
    value: Callable[[np.ndarray], np.ndarray]
    count: int | None = None

    def of(self, logged: Sequence[Any]) -> float:
        """The number itself."""
        return float(self.value(np.sum([self.parts(each) for each in logged], axis=0, keepdims=True))[0])


def picture(doc: Mapping[str, Any]) -> list[Any]:
    """The picture of a question, as lmms-eval asks for it."""
    from core.images import load_image

    return [load_image(doc["image"])]


def score_question(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The logged values of one answer to a question about a scene, one for each metric of `tasks/scenes_vqa.yaml`.

    `accuracy` is VQA's with one answer that everybody gave: 1 where the short answer is that one after VQA's own
    normalisation. `sentence` asks for the whole sentence of the training texts.
    """
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    normalised = EvalAIAnswerProcessor()
    said = results[0].strip()
    short = short_answer(doc["kind"], said)
    right = float(normalised(short) == normalised(doc["answer"]))
    whole = float(normalised(said) == normalised(doc["sentence"]))
    about = {name: doc[name] for name in ("question_id", "image_id", "kind")}
    about |= {"prediction": short, "ground_truth": doc["answer"]}
    values = {"accuracy": about | {"score": right}, "sentence": about | {"score": whole}}
    values |= {kind: about | {"score": right, "counted": doc["kind"] == kind} for kind in KINDS}
    return {name: value | {"metric": name} for name, value in values.items()}


def score_presence(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The logged values of one answer to "Is there a ... in the image?", for each metric of POPE."""
    said = yes_or_no(results[0])
    value = {name: doc[name] for name in ("question_id", "image_id", "strategies")}
    value |= {"prediction": said, "ground_truth": doc["answer"], "score": float(said == doc["answer"])}
    return {name: value | {"metric": name} for name in POPE_METRICS}


def score_description(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The logged values of one description, which says yes to the categories that it names and no to all others."""
    words = set(re.findall(r"[a-z]+", results[0].lower()))
    polled = [
        {
            "prediction": "yes" if {each["category"], each["category"] + "s"} & words else "no",
            "ground_truth": each["answer"],
            "strategies": each["strategies"],
        }
        for each in doc["poll"]
    ]
    value = {"question_id": doc["question_id"], "image_id": doc["image_id"], "poll": polled}
    return {name: value | {"metric": name} for name in POPE_METRICS}


def yes_or_no(answer: str) -> str:
    """What a sentence says to a question of POPE's: "no" where its first sentence has No, no or not, or else "yes".

    Source: the evaluation that POPE and LLaVA publish; lmms-eval's own task takes nothing but the one word.
    """
    return "no" if {"No", "no", "not"} & set(answer.partition(".")[0].replace(",", "").split(" ")) else "yes"


def aggregate(logged: Sequence[Mapping[str, Any]]) -> float:
    """One metric over a whole set; lmms-eval's aggregation of both tasks."""
    return statistic(logged[0]["metric"]).of(logged)


def statistic(metric: str) -> Statistic:
    """How a metric of ours, or one of lmms-eval's behind Table 3, comes about from the logged values.

    Raises:
        GroundingError: no such metric is known here.
    """
    if metric not in STATISTICS:
        raise GroundingError(f"how {metric!r} is computed is not known here; known: {', '.join(STATISTICS)}")
    return STATISTICS[metric]


def _mean_parts(logged: Any) -> tuple[float, float]:
    """(score, 1); a logged value is a number, or a mapping with a score that may be left out of the count."""
    if not isinstance(logged, Mapping):
        return float(logged), 1.0
    counted = float(logged.get("counted", True))
    return counted * float(logged["score"]), counted


def _pope_parts(strategy: str | None) -> Callable[[Any], Sequence[float]]:
    """(true yes, false yes, false no, right, yes, all) of one answer; "yes" and "no" are the only words that count.

    A description holds a `poll` of several.
    """

    def parts(logged: Mapping[str, Any]) -> Sequence[float]:
        if "poll" in logged:
            return np.sum([parts(each) for each in logged["poll"]], axis=0).tolist()
        if strategy is not None and strategy not in logged["strategies"]:
            return (0.0,) * 6
        said, true = logged["prediction"], logged["ground_truth"]
        found = (said == true == "yes", (said, true) == ("yes", "no"), (said, true) == ("no", "yes"))
        return (*map(float, found), float(said == true), float(said == "yes"), 1.0)

    return parts


def _pope_value(name: str) -> Callable[[np.ndarray], np.ndarray]:
    def value(sums: np.ndarray) -> np.ndarray:
        hit, wrong, missed, right, yes, total = np.moveaxis(sums, -1, 0)
        return {
            "accuracy": lambda: _share(right, total),
            "precision": lambda: _share(hit, hit + wrong),
            "recall": lambda: _share(hit, hit + missed),
            "f1_score": lambda: _share(2 * hit, 2 * hit + wrong + missed),
            "yes_ratio": lambda: _share(yes, total),
        }[name]()

    return value


def _three_f1(sums: np.ndarray) -> np.ndarray:
    return np.mean([_pope_value("f1_score")(part) for part in np.split(sums, 3, axis=-1)], axis=0)


def _three_parts(logged: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(part for strategy in STRATEGIES for part in _pope_parts(strategy)(logged))


def _judged(logged: Mapping[str, Any]) -> tuple[float, float]:
    """The judge's points for the reference answer and for the model's."""
    reference, own = logged["scores"]
    return float(reference), float(own)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 of nothing, as POPE's metrics have it."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan)


MEAN = Statistic(_mean_parts, _mean, count=1)
STATISTICS = {
    **dict.fromkeys(("exact_match", "accuracy", "sentence", *KINDS), MEAN),
    "f1_score": Statistic(_three_parts, _three_f1),
    **{
        f"{strategy}_{name}": Statistic(_pope_parts(strategy), _pope_value(name), count=5)
        for strategy in STRATEGIES
        for name in POPE
    },
    **{f"pope_{name}": Statistic(_pope_parts(None), _pope_value(name), count=5) for name in POPE},
    "gpt_eval_llava_all": Statistic(_judged, lambda sums: sums[..., 1] / sums[..., 0]),
}
