"""What each choice of the released code does: presets and single changes, grounded from one captured run and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from analysis.gcg.predictions import open_predictions, write_predictions
from analysis.gcg.scores import GcgScores, score_systems
from analysis.gcg.scores import difference as gcg_difference
from analysis.gcg.settings import GcgSettings
from analysis.pilot_study.table import collect_predictions
from analysis.scoring.coco import CocoDataset
from analysis.scoring.comparison import told_apart
from analysis.scoring.matching import CategoryMatcher
from analysis.scoring.metrics import NOTHING, Interval
from analysis.scoring.phrases import PhraseScores, difference, score_points
from analysis.scoring.precision import MaskScores, mask_difference, mask_scores
from analysis.settings import Settings
from core.options import PRESETS, GroundOptions
from core.records import RunStore

STUDIED: dict[str, GroundOptions] = {
    name: PRESETS[name]
    for name in ("paper", "no_normalization", "mask_prompt", "reference_v1", "reference_v1_demo", "reference_v2")
} | {
    "paper, but head -2 of every layer": GroundOptions(heads=(-2,)),
    "paper, but maximum over a phrase's tokens": GroundOptions(aggregation="max"),
    "paper, but one token late": GroundOptions(token_offset=1),
    "paper, but no peak in a corner": GroundOptions(remove_corners=True),
    "paper, but all three masks": GroundOptions(mask_choice="all"),
    "paper, but the best of three masks": GroundOptions(mask_choice="best"),
    "paper, but pronouns, too": GroundOptions(pronouns=True),
}
"""Presets, then single choices of the released code made beside the paper's others."""

POINTS, GCG, MASKS = ("PAcc",), ("mIoU", "recall"), ("AP", "AR")
METRICS = (*POINTS, *GCG, *MASKS)


@dataclass(frozen=True)
class Part:
    """One dataset of the study, with the settings under which it is answered."""

    name: str
    settings: Settings
    dataset: Any


@dataclass(frozen=True, kw_only=True)
class PresetSettings(GcgSettings):
    """`GcgSettings` of a study that also scores points, for which it needs categories.

    Attributes:
        instances: a COCO instances JSON for PAcc, AP and AR; "" = embedded scenes, or with given `data` none.
        instances_images: folder of its images; "" = `images` beside the JSON.
    """

    instances: str = ""
    instances_images: str = ""

    def parts(self) -> tuple[Part, ...]:
        """Grounded captions, then instances where there are any. Embedded ones are the same images, answered once.

        Raises:
            GroundingError: a dataset cannot be read.
        """
        captions = Part("grounded captions", self, self.open_dataset())
        if self.data and not self.instances:
            return (captions,)
        shared = {each.name: getattr(self, each.name) for each in fields(Settings)}
        points = Settings(**shared | {"data": self.instances, "images_dir": self.instances_images})
        return (captions, Part("instances", points, points.open_dataset()))


@dataclass(frozen=True)
class PresetScores:
    """What one way of grounding is worth; None where the study has no such data.

    Attributes:
        captions: on grounded captions.
        points, masks: on instances.
    """

    captions: GcgScores
    points: PhraseScores | None = None
    masks: MaskScores | None = None

    def interval(self, metric: str, *, seed: int = 0) -> Interval:
        """One of `METRICS` in 0..1 with its bootstrap interval over images; nan where it is not known."""
        if metric in GCG:
            return self.captions.interval(metric, seed=seed)
        if metric in MASKS:
            return NOTHING if self.masks is None else self.masks.interval(metric)
        return NOTHING if self.points is None else self.points.interval(seed=seed)

    def minus(self, other: PresetScores, metric: str, *, seed: int = 0) -> Interval:
        """A metric of this one minus that of another, on the same resampled images."""
        if metric in GCG:
            return gcg_difference(other.captions, self.captions, metric, seed=seed)
        if self.points is None or self.masks is None or other.points is None or other.masks is None:
            return NOTHING
        if metric in MASKS:
            return mask_difference(other.masks, self.masks, metric)
        return difference(other.points, self.points, seed=seed)


def score_presets(
    variants: Mapping[str, Mapping[str, RunStore]],
    parts: Sequence[Part],
    *,
    encoder: Any,
    matcher: CategoryMatcher,
    seed: int = 0,
) -> dict[str, PresetScores]:
    """Score every way of grounding on every part: mIoU and mask recall by GLaMM's protocol, where a phrase with three
    masks counts three times; PAcc, AP and AR as in the pilot study.

    Args:
        variants: by the part's name, then by their rows' names.
        parts: of `PresetSettings.parts`.
        encoder: compares phrases of grounded captions.
        matcher: of phrases to the instances' categories.
        seed: of the bootstrap.
    """
    captions, *instances = parts
    folders = {}
    for number, (label, store) in enumerate(variants[captions.name].items()):
        folder = captions.settings.path("predictions", f"{number:02d}")
        write_predictions(captions.dataset.records(store), folder, every_mask=True)
        folders[label] = open_predictions(folder, captions.dataset)
    scored = score_systems(folders, encoder, captions=False)
    more: dict[str, tuple[PhraseScores, MaskScores]] = {}
    for part in instances:
        dataset: CocoDataset = part.dataset
        for label, store in variants[part.name].items():
            found = collect_predictions(dataset.records(store), dataset, matcher)
            more[label] = score_points(found.found, dataset), mask_scores(found.results, dataset, seed=seed)
    return {label: PresetScores(own, *more.get(label, ())) for label, own in scored.items()}


def preset_table(scores: Mapping[str, PresetScores], *, seed: int = 0) -> pd.DataFrame:
    """One row for each way of grounding, in percent: each of `METRICS` with `_low` and `_high` (95 % interval), and in
    `<metric> difference` likewise what sets it apart from the first row; `n_phrases` that it grounds.
    """
    first, rows = next(iter(scores.values())), []
    for label, own in scores.items():
        row: dict[str, Any] = {"grounding": label, "n_phrases": own.captions.n_phrases}
        for metric in METRICS:
            apart = NOTHING if own is first else own.minus(first, metric, seed=seed)
            row |= own.interval(metric, seed=seed).columns(metric) | apart.columns(f"{metric} difference")
        rows.append(row)
    return pd.DataFrame(rows)


def values_of(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics themselves, without what was not measured."""
    return _with(table, [metric for metric in METRICS if table[metric].notna().any()])


def differences_of(table: pd.DataFrame) -> pd.DataFrame:
    """The differences from the first row, without that row and without what was not measured."""
    names = [f"{metric} difference" for metric in METRICS if table[metric].notna().any()]
    return _with(table.iloc[1:], names).drop(columns="n_phrases")


def reading(table: pd.DataFrame) -> str:
    """Which choices change which metric by more than the images' chance allows, in the measured numbers."""
    first, lines = table["grounding"].iloc[0], []
    for row in table.iloc[1:].to_dict("records"):
        told = []
        for metric in METRICS:
            value, low, high = (row[f"{metric} difference{end}"] for end in ("", "_low", "_high"))
            if not pd.isna(value) and (verdict := told_apart(low, high)) != "not told apart":
                told.append(f"{metric} {verdict} ({value:+.1f} [{low:.1f}, {high:.1f}])")
        lines.append(f"  {row['grounding']}: {', '.join(told) or 'nothing told apart'}")
    heading = f"Against {first}, in percentage points (95 % intervals, paired, not corrected for their number):"
    return "\n".join([heading, *lines])


def _with(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table[["grounding", *(f"{name}{end}" for name in names for end in ("", "_low", "_high")), "n_phrases"]]
