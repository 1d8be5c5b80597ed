"""What notebooks say they measured: rows beside the paper's."""

from __future__ import annotations

import pandas as pd
import pytest

from analysis.paper import paper_row
from analysis.results import COLUMNS, Result, beyond_rows, read_results, rows_of, save_results
from analysis.scoring.metrics import Interval
from analysis.tables import Provenance
from core.errors import GroundingError

MADE = Provenance("tiny/model", "tiny scenes", 5)


def test_rows_come_back_with_what_made_them(tmp_path):
    results = [
        Result(item="Table 4", quantity="mIoU (%)", method="norm", interval=Interval(50.0, 40.0, 60.0), paper=61.2),
        Result(item="Figure 5", quantity="maps", figure="head_maps", model="other", n=1),
    ]
    save_results(tmp_path, results, MADE)
    frame = read_results(tmp_path)
    assert list(frame.columns) == COLUMNS
    assert frame["model"].tolist() == ["tiny/model", "other"] and frame["n"].tolist() == [5, 1]
    assert frame.loc[0, ["value", "low", "high", "paper"]].tolist() == [50.0, 40.0, 60.0, 61.2]
    assert pd.isna(frame.loc[1, "value"]) and frame.loc[1, "figure"] == "head_maps"


def test_nothing_or_something_else_is_no_rows(tmp_path):
    assert len(read_results(tmp_path)) == 0
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert len(read_results(tmp_path)) == 0
    (tmp_path / "results.csv").write_text("")
    assert len(read_results(tmp_path)) == 0


def test_an_item_that_the_paper_lacks_is_refused():
    with pytest.raises(GroundingError, match="no 'Table 8'"):
        Result(item="Table 8", quantity="x")


@pytest.mark.parametrize(
    ("number", "label", "method"),
    [
        (1, "Random Point", "Random Point"),
        (1, "attend-and-segment embedded", "LLaVA-1.5, CLIP (original)"),
        (1, "LLaVA, DINO runs/dino", "LLaVA-1.5, DINOv2"),
        (1, "DiffLMM, SD + CLIP (two stages) embedded/difflmm", "DiffLMM, SD-1.5 + CLIP"),
        (2, "LLaVA-NeXT llava-hf/llava-v1.6-vicuna-7b-hf", "LLaVA-NeXT + a&s"),
        (2, "DiffLMM, SD", "DiffLMM + a&s"),
        (2, "DiffLMM, SD + CLIP (two stages) embedded/difflmm", "DiffLMM + a&s"),
        (1, "Qwen/Qwen2.5-VL-7B-Instruct", None),
        (1, "LLaVA-NeXT", None),
    ],
)
def test_our_rows_stand_beside_the_papers_of_the_same_kind(number, label, method):
    row = paper_row(number, label)
    assert (None if row is None else row["method"]) == method


def test_a_tables_rows_become_results():
    frame = pd.DataFrame(
        {
            "method": ["Random Point", "mine"],
            "model": ["", "hub/llava"],
            "PAcc": [4.0, 78.0],
            "PAcc_low": [float("nan"), 75.0],
            "PAcc_high": [float("nan"), 81.0],
            "AP": [1.0, float("nan")],
        }
    )
    found = rows_of(frame, item="Table 1", quantities={"PAcc": "PAcc (%)", "AP": "AP (%)", "AR": "AR (%)"})
    assert [(each.method, each.quantity, each.paper) for each in found] == [
        ("Random Point", "PAcc (%)", 10.53),
        ("Random Point", "AP (%)", 0.3),
        ("mine", "PAcc (%)", 34.01),
    ]
    assert found[2].interval == Interval(78.0, 75.0, 81.0) and found[2].model == "hub/llava"


def test_what_goes_beyond_the_paper_has_rows_without_a_number_of_its():
    frame = pd.DataFrame(
        {"points": ["a", "b"], "PAcc": [4.0, float("nan")], "PAcc_low": [3.0, 0.0], "PAcc_high": [5.0, 0.0]}
    )
    (row,) = beyond_rows(frame, "points", {"PAcc": "PAcc (%)"})
    assert (row.item, row.quantity, row.method, row.paper) == ("beyond", "PAcc (%)", "a", None)
    assert row.interval == Interval(4.0, 3.0, 5.0)
