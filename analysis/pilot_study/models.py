"""Several models in one pilot study: a record folder for each, a row for each in Table 1, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.pilot_study.table import (
    ATTENDED,
    RANDOM,
    Predictions,
    as_table,
    baseline_row,
    chance_accuracy,
    model_row,
    pilot_table,
)
from analysis.scoring.coco import CocoDataset
from analysis.scoring.metrics import Interval
from analysis.scoring.phrases import difference, score_points
from analysis.scoring.precision import mask_scores, mask_table
from analysis.settings import Settings, folder_name
from analysis.tables import Provenance
from core.errors import GroundingError


@dataclass(frozen=True)
class StudiedModel:
    """One model of a study.

    Attributes:
        label: its row's name.
        settings: the study's, with this model.
        folder: name for a folder of what is its own.
    """

    label: str
    settings: Settings
    folder: str


def studied_models(settings: Settings, models: Mapping[str, Any]) -> tuple[StudiedModel, ...]:
    """The models of a study in their order; without `models` the single one of the settings.

    Args:
        models: label to model, as `core.load_lmm` takes it.

    Raises:
        GroundingError: a label or a model that is no text or empty, the baseline's label, or two labels whose folders
            would be the same.
    """
    if not models:
        return (StudiedModel(ATTENDED, settings, ""),)
    study: dict[str, StudiedModel] = {}
    for label, model in models.items():
        if not all(isinstance(text, str) and text.strip() for text in (label, model)):
            raise GroundingError(f"models has {label!r}: {model!r}; give `label: model` pairs of two texts")
        folder = folder_name(label)
        if label.startswith(RANDOM):
            raise GroundingError(f"the label {label!r} is the baseline's; choose another")
        if not folder or folder in (each.folder for each in study.values()):
            raise GroundingError(
                f"the label {label!r} would keep its files in {folder!r}, like another one or without a name; "
                "labels must differ in letters or digits"
            )
        study[label] = StudiedModel(label, replace(settings, model=model), folder)
    return tuple(study.values())


def model_names(models: Sequence[StudiedModel]) -> Settings:
    """The study's settings with all its models' names as `model`, for a provenance of all of them."""
    return replace(models[0].settings, model="; ".join(dict.fromkeys(run.settings.model for run in models)))


def headline(models: Sequence[StudiedModel], provenance: Provenance) -> str:
    """Title of figures: names the model where there is one, counts them where there are several."""
    if len(models) == 1:
        return provenance.headline()
    return f"{len(models)} models on {provenance.data}, {provenance.n_images} images"


def study_table(
    predictions: Mapping[str, Predictions],
    baseline: Sequence[dict[str, Any]],
    dataset: CocoDataset,
    *,
    models: Sequence[StudiedModel],
    n_draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """`pilot_table` of one model as it is; of several, the baseline, then one row for each.

    Args:
        predictions: of each model by its label.
        baseline, dataset, n_draws, seed: as in `pilot_table`.
        models: the study's.

    Returns:
        The columns of `pilot_table`; with several models also `model` and, in place of the row of chance, `chance`: the
        PAcc expected of uniformly random points for the phrases that the model said.
    """
    if len(models) == 1:
        return pilot_table(predictions[models[0].label], baseline, dataset, n_draws=n_draws, seed=seed)
    rows = [baseline_row(baseline, dataset, n_draws=n_draws, seed=seed) | {"model": ""}]
    for run in models:
        found = predictions[run.label]
        chance = 100 * chance_accuracy(found, dataset, seed=seed).value
        own = {"model": run.settings.model, "chance": chance}
        rows.append(model_row(run.label, found, dataset, seed=seed) | own)
    table = as_table(rows, dataset)
    names = ["method", "model", "PAcc", "PAcc_low", "PAcc_high", "chance"]
    return table[[*names, *(name for name in table.columns if name not in names)]]


def accuracy_differences(
    predictions: Mapping[str, Predictions], dataset: CocoDataset, *, seed: int = 0
) -> pd.DataFrame:
    """PAcc of each model minus that of the first, in percentage points, with paired bootstrap intervals over images.

    Returns:
        `method`, `PAcc`, `low`, `high`; one row for each model but the first.
    """
    scores = {label: score_points(each.found, dataset) for label, each in predictions.items()}
    first, *others = scores
    rows = []
    for label in others:
        found = difference(scores[first], scores[label], seed=seed)
        rows.append({"method": label, "PAcc": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high})
    return pd.DataFrame(rows, columns=["method", "PAcc", "low", "high"])


def mask_differences(
    predictions: Mapping[str, Predictions], baseline: Sequence[dict[str, Any]], dataset: CocoDataset, *, seed: int = 0
) -> pd.DataFrame:
    """AP and AR of the baseline and of each model in percent, with intervals over images and paired differences.

    Args:
        predictions: of each model by its label.
        baseline, dataset, seed: as in `pilot_table`.

    Returns:
        `analysis.scoring.precision.mask_table` with the differences from the baseline; of several models also those
        from the first one, in `from first` with `_low` and `_high`.
    """
    models = {label: mask_scores(found.results, dataset, seed=seed) for label, found in predictions.items()}
    table = mask_table({RANDOM: mask_scores(baseline, dataset, seed=seed)} | models, RANDOM)
    if len(models) == 1:
        return table
    first = mask_table(models, next(iter(models)))
    names = {f"difference{end}": f"from first{end}" for end in ("", "_low", "_high")}
    return table.merge(first[["method", "metric", *names]].rename(columns=names), how="left", on=["method", "metric"])


def with_mask_intervals(scores: pd.DataFrame, masks: pd.DataFrame) -> pd.DataFrame:
    """A table of `study_table` with the intervals of `mask_differences` beside its AP and AR, as `<name>_low` and
    `_high`.
    """
    wide = masks.pivot(index="method", columns="metric", values=["low", "high"])
    wide.columns = [f"{metric}_{end}" for end, metric in wide.columns]
    return scores.merge(wide.reset_index(), how="left", on="method")


def compare(differences: pd.DataFrame, first: str) -> str:
    """Which models point better or worse than the first by more than the images' chance allows."""
    lines = [
        f"PAcc against {first} on the same images (95 % intervals, paired bootstrap, not corrected for their number):"
    ]
    for row in differences.to_dict("records"):
        verdict = "higher" if row["low"] > 0 else "lower" if row["high"] < 0 else "not told apart"
        interval = Interval(*(row[name] / 100 for name in ("PAcc", "low", "high")))
        lines.append(
            f"  {row['method']}: {verdict if pd.notna(row['PAcc']) else 'nothing to compare'}, {interval.points()}"
        )
    return "\n".join(lines)


def stack(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One frame of each model's, with its label as `method`; of one model its frame as it is."""
    if len(frames) == 1:
        return next(iter(frames.values()))
    return pd.concat([frame.assign(method=label)[["method", *frame.columns]] for label, frame in frames.items()])
