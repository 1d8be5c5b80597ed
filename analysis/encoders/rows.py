"""What Tables 5 and 6 of the paper are: their question, their rows (ours and the paper's) and the row to compare with.

Whatever differs between the two tables is said here, once, in `TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.paper import paper_methods, paper_table
from core.errors import GroundingError
from embedded.encoder_study.variants import TABLE5, TABLE6, Variant


@dataclass(frozen=True)
class EncoderTable:
    """One of the paper's two tables of visual encoders.

    Attributes:
        number: in the paper.
        name: of its file.
        question: that it answers.
        setting: what varies and what is trained, in words.
        title: of the table, without the unit.
        variants: in the order of the paper's rows.
        reference: name of the variant that the others are compared with.
        describe: the columns of a variant's row, `label` (the row in words) and the paper's.
        published: the paper's table, its columns renamed, and `describe_variants` -> the paper's rows in our order.
        panels: what varies -> what is held fixed meanwhile, and where; empty for a table that varies no number.
    """

    number: int
    name: str
    question: str
    setting: str
    title: str
    variants: tuple[Variant, ...]
    reference: str
    describe: Callable[[Variant], dict[str, Any]]
    published: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]
    panels: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def opening(self) -> str:
        """The question as a heading, and a paragraph, in Markdown."""
        scale = f"This is Table {self.number} of the paper with the small models of this repository"
        return f"## Table {self.number}: {self.question}\n\n{self.setting} {scale}, trained on its own scenes."

    @property
    def reference_label(self) -> str:
        """The reference in words."""
        return next(self.describe(variant)["label"] for variant in self.variants if variant.name == self.reference)


def find_table(number: int) -> EncoderTable:
    """Table 5 or 6.

    Raises:
        GroundingError: another table.
    """
    if number not in TABLES:
        raise GroundingError(f"the encoder variants stand in tables 5 and 6, not in {number}")
    return TABLES[number]


def describe_variants(number: int) -> pd.DataFrame:
    """What the rows of a table are: `label` (a row in words), `variant`, and the paper's columns: `method`, `PE`, `IC`
    (positional encoding, implicit captioner) in Table 5; `noise_step`, `up_block` in Table 6."""
    table = find_table(number)
    rows = pd.DataFrame([{"variant": variant.name, **table.describe(variant)} for variant in table.variants])
    return rows[["label", *rows.columns.drop("label")]]


def paper_losses(number: int) -> pd.DataFrame:
    """The paper's rows in the order of `describe_variants`, with its columns: converged stage-1 loss as
    `training_loss`."""
    names = {"pretrain_loss": "training_loss", "feature_block": "up_block"}
    names |= {"positional_encoding": "PE", "implicit_captioner": "IC"}
    return find_table(number).published(paper_table(number).rename(columns=names), describe_variants(number))


def _encoder_row(variant: Variant) -> dict[str, Any]:
    flags = {"PE": variant.positional_encoding, "IC": variant.implicit_captioner}
    told = {name: "yes" if on else "no" for name, on in flags.items()}
    return {
        "label": f"{variant.model}, {' + '.join([variant.backbone, *(name for name, on in flags.items() if on)])}",
        "method": f"{variant.model}, {variant.backbone}",
        **(told if variant.diffusion else told | {"IC": "–"}),
    }


def _published_encoders(paper: pd.DataFrame, described: pd.DataFrame) -> pd.DataFrame:
    """The paper's models have names of their own; its rows are ours by their place."""
    flags = paper[["PE", "IC"]].eq("yes").to_numpy()
    extra = ["".join(f" + {name}" for name, on in zip(("PE", "IC"), row, strict=True) if on) for row in flags]
    methods = paper_methods(5)
    named = {"method": methods, "label": methods + extra, "variant": described["variant"]}
    return paper.fillna({"IC": "–"}).assign(**named)


def _step_row(variant: Variant) -> dict[str, Any]:
    return {
        "label": f"step {variant.noise_step}, block {variant.up_block}",
        "noise_step": variant.noise_step,
        "up_block": variant.up_block,
    }


def _published_steps(paper: pd.DataFrame, described: pd.DataFrame) -> pd.DataFrame:
    return described.merge(paper, on=["noise_step", "up_block"], validate="one_to_one")


TABLES = {
    5: EncoderTable(
        number=5,
        name="table5_encoders",
        question="which visual encoder does the language model read best?",
        setting="CLIP, a self-supervised DINO, a diffusion model, and their combinations stand in the same place "
        "before the same frozen language model. Stage 1 trains only what connects them (projector, implicit captioner "
        "IC, positional encodings PE), so the loss that it converges to tells how well the encoder's features can be "
        "read.",
        title="Stage-1 loss of visual encoders",
        variants=TABLE5,
        reference="clip",
        describe=_encoder_row,
        published=_published_encoders,
    ),
    6: EncoderTable(
        number=6,
        name="table6_noise_and_blocks",
        question="how much noise, and which block of the U-Net?",
        setting="DiffLMM reads a diffusion model's features after one noising step and one pass through the U-Net up "
        "to one of its up blocks. Here the noise step and the block vary, one at a time, with nothing beside the "
        "diffusion features (no captioner, no positional encodings, no CLIP); stage 1 trains the projector alone.",
        title="Stage-1 loss by noise step and up block",
        variants=TABLE6,
        reference="sd",
        describe=_step_row,
        published=_published_steps,
        panels={"noise_step": ("up_block", 2), "up_block": ("noise_step", 100)},
    ),
}
