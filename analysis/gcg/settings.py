"""The parameters of grounded conversation generation, beside those that the notebooks share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.gcg.dataset import GcgDataset
from analysis.gcg.grandf import load_gcg
from analysis.settings import Settings
from core.errors import GroundingError

SPLITS = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class GcgSettings(Settings):
    """`Settings` of a notebook on grounded conversation generation.

    Attributes:
        data: folder of GranD-f's two files, or of others in their format; "" = embedded scenes, drawn here.
        split: val or test.
        text_encoder: what compares phrases: "spacy" for the word vectors of `spacy_model`, or a hub id or directory of
            a transformers encoder; the paper's is bert-base-uncased.

    Raises:
        GroundingError: a value that cannot be used; the message says which values can.
    """

    split: str = "val"
    text_encoder: str = "spacy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in SPLITS:
            raise GroundingError(f"split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if not self.text_encoder.strip():
            raise GroundingError("text_encoder is empty; give 'spacy' or an encoder such as bert-base-uncased")

    def open_dataset(self) -> GcgDataset:
        """The dataset asked for; embedded scenes are drawn into the shared folder.

        Raises:
            GroundingError: the dataset cannot be read.
        """
        options = {"split": self.split, "n_images": self.n_images, "name": self.data_name()}
        if self.data:
            return load_gcg(self.data, self.images_dir, **options)
        from embedded.scenes.grounded_captions import write_grounded_captions

        folder = self.shared("data", f"{self.split}-seed{self.seed}")
        return load_gcg(write_grounded_captions(folder, split=self.split, n=self.n_images, seed=self.seed), **options)

    def data_name(self) -> str:
        """The data in words, for tables."""
        if self.data:
            return f"{Path(self.data).name} ({self.split})"
        return f"embedded scenes ({self.split}, seed {self.seed})"

    def run_config(self, **loaded: Any) -> dict[str, Any]:
        """As `Settings.run_config`; the splits of one folder are other data, and the name of embedded scenes says which
        split they are of.
        """
        return super().run_config(**loaded) | ({"split": self.split} if self.data else {})

    def open_encoder(self, nlp: Any) -> Any:
        """What compares phrases, a `core.text_encoders.TextEncoder`.

        Args:
            nlp: the spaCy pipeline, for its vectors.

        Raises:
            GroundingError: no such encoder.
        """
        from core.text_encoders import load_text_encoder

        return load_text_encoder(self.text_encoder, nlp=nlp, device=self.loading.get("device", "auto"))
