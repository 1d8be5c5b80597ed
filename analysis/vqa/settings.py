"""The parameters of visual question answering, beside those that the notebooks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from analysis.settings import Settings, folder_name
from analysis.tables import Provenance
from analysis.vqa.harness import SCENES, run_tasks, write_tasks
from analysis.vqa.results import TaskResult
from core.errors import GroundingError
from core.planning import AUTO
from embedded.scenes.scenes import SPLITS


@dataclass(frozen=True, kw_only=True)
class VqaSettings(Settings):
    """`Settings` of a notebook on visual question answering.

    Attributes:
        tasks: names of lmms-eval's tasks, separated by commas; "" = the embedded sets, drawn here.
        split: of the scenes.

    `loading` has the batch size, too: questions that are answered at once, 16 unless given.

    Raises:
        GroundingError: a value that cannot be used; the message says which values can.
    """

    tasks: str = ""
    split: str = "val"
    usual_batch_size: ClassVar[int] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise GroundingError(f"split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if self.batch_size == AUTO:
            raise GroundingError("lmms-eval asks its questions in batches of one size; give batch_size a whole number")

    def task_names(self) -> tuple[str, ...]:
        """What is asked."""
        return tuple(name.strip() for name in self.tasks.split(",") if name.strip()) or SCENES

    def ask(self, label: str, *, maps: bool = False, batch_size: int | None = None, tasks: Any = None) -> Path:
        """The results folder of this model, named by its label and how it was asked; asked once.

        Raises:
            GroundingError: lmms-eval is not installed, or does not know a task.
        """
        size = batch_size or self.batch_size
        name = f"{folder_name(label)}-batch{size}{'-maps' if maps else ''}"
        options = {"limit": self.n_images or None} if self.tasks else {"include_path": self.write_data()}
        folder = self.path("results", "tasks" if self.tasks else self._scenes(), name)
        asked = self.task_names() if tasks is None else tuple(tasks)
        options |= {"batch_size": size, "maps": maps}
        return run_tasks(self.model, asked, folder, **options, **self.lmm_options())

    def write_data(self) -> Path:
        """The folder of the embedded sets and their task files, drawn into the output directory."""
        return write_tasks(self.path("data", self._scenes()), split=self.split, n=self.n_images, seed=self.seed)

    def data_name(self) -> str:
        """The data in words, for tables."""
        return ", ".join(self.task_names()) if self.tasks else f"embedded scenes ({self.split}, seed {self.seed})"

    def vqa_provenance(self, found: Mapping[str, Mapping[str, TaskResult]], **extra: Any) -> Provenance:
        """What made a table; the prompts are the questions themselves.

        Args:
            found: results by label, for the number of questions where the tasks are lmms-eval's.
        """
        counts = [result.n or 0 for results in found.values() for result in results.values()]
        n_images = max(counts, default=0) if self.tasks else self.n_images
        shown = {"prompt": "the question", "batch_size": self.batch_size} | self.lmm_options()
        return Provenance(self.model, self.data_name(), n_images, shown | {"seed": self.seed} | extra)

    def _scenes(self) -> str:
        return f"{self.split}-seed{self.seed}-n{self.n_images}"
