"""Grounding costs no answers: the same questions with and without reading the attention."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.pilot_study.models import StudiedModel
from analysis.vqa.results import TaskResult, answers, differing_answers, read_results


def maps_against_none(study: Sequence[StudiedModel]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many answers change when their maps are captured, for padded batches, and for the first model one by one.

    Args:
        study: models with `analysis.vqa.settings.VqaSettings`.

    Returns:
        (counts, changed): `method`, `model`, `batch_size`, `n_answers`, `n_words` (of the answers with maps) and
        `differing`; then the answers that differ, with `task`, `question`, `first` (without maps) and `second`.
    """
    counts, changed = [], []
    for number, run in enumerate(study):
        for size in dict.fromkeys((run.settings.batch_size,) if number else (1, run.settings.batch_size)):
            plain, mapped = (_asked(run, maps, size) for maps in (False, True))
            said, other = answers(mapped), differing_answers(plain, mapped)
            about = {"method": run.label, "model": run.settings.model, "batch_size": size}
            counts.append(
                about
                | {"n_answers": len(said), "n_words": int(said["answer"].str.split().str.len().sum())}
                | {"differing": len(other)}
            )
            changed.append(other.assign(**about))
    return pd.DataFrame(counts), pd.concat(changed, ignore_index=True)


def _asked(run: StudiedModel, maps: bool, size: int) -> dict[str, TaskResult]:
    return read_results(run.settings.ask(run.label, maps=maps, batch_size=size))
