"""The paper's published numbers as data frames: other models on other data, shown beside ours and never among them."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

from core.errors import GroundingError

REFERENCE = "arXiv 2410.08209v1"
TABLES = {
    1: ("table1_pilot_study", "COCO val2017, instance segmentation"),
    2: ("table2_gcg", "GranD-f, grounded conversation generation"),
    3: ("table3_vqa", "eight VQA benchmarks"),
    4: ("table4_attend_and_segment_ablation", "GranD-f val, DiffLMM"),
    5: ("table5_difflmm_ablation", "LLaVA-Pretrain 558K, stage-1 loss"),
    6: ("table6_diffusion_features", "LLaVA-Pretrain 558K, stage-1 loss of DiffLMM with SD-1.5 only"),
    7: ("table7_single_head_recall", "GranD-f val, DiffLMM, mask recall; the paper's layers and heads as printed"),
}


def paper_table(number: int) -> pd.DataFrame:
    """One of the paper's seven tables; its first two columns, `source` and `data`, say what it is.

    Raises:
        GroundingError: there is no such table.
    """
    if number not in TABLES:
        raise GroundingError(f"the paper has no table {number}; choose one of {', '.join(map(str, TABLES))}")
    name, data = TABLES[number]
    with (files("analysis") / "data" / "paper" / f"{name}.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame.insert(0, "data", data)
    frame.insert(0, "source", f"paper, Table {number} ({REFERENCE})")
    return frame


def paper_methods(number: int) -> pd.Series:
    """One readable label per row of a table whose rows are models, e.g. "LLaVA-1.5, DINOv2"."""
    frame = paper_table(number)
    if "model" not in frame:
        raise GroundingError(
            f"the rows of the paper's table {number} are not models; its columns are {list(frame.columns)}"
        )
    backbone = frame.get("visual_backbone", frame.get("visual", pd.Series("", index=frame.index))).fillna("")
    return frame["model"].str.cat(backbone.where(backbone == "", ", " + backbone))


_BESIDE = (  # words in the name of one of our rows, and words of the paper's row beside which it stands; first match
    (("random point,",), ()),  # chance for the phrases that were said, which the paper does not report
    (("random point",), ("Random Point",)),
    (("difflmm", "clip"), ("DiffLMM", "CLIP")),
    (("difflmm",), ("DiffLMM",)),
    (("cambrian",), ("Cambrian-1",)),
    (("next",), ("LLaVA-NeXT",)),
    (("dino", "clip"), ("LLaVA-1.5", "CLIP + DINOv2")),
    (("dino",), ("LLaVA-1.5", "DINOv2")),
    (("convnext",), ("LLaVA-1.5", "ConvNeXt CLIP")),
    (("llava",), ("LLaVA-1.5",)),
)


def paper_row(number: int, label: str) -> pd.Series | None:
    """The row of one of the paper's tables of models that stands beside a row of ours; None where there is none.

    Args:
        number: of the table.
        label: name of our row, and of its model if that says more; "embedded" alone is the embedded LLaVA.

    Source: ours: by the words that both names share, such as DiffLMM; where the paper has several backbones, its first.
    """
    words = label.lower()
    words += " llava" if "embedded" in words else ""
    rows = paper_table(number).assign(method=paper_methods(number))
    for ours, theirs in _BESIDE:
        if all(word in words for word in ours):
            found = rows[[all(word in method for word in theirs) for method in rows["method"]]]
            if len(found) == 0 and len(ours) > 1:
                continue  # a table without backbones
            return found.iloc[0] if theirs and len(found) else None
    return None
