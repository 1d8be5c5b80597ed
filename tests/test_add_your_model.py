"""The page "Add your model" does what it says: its code blocks run in order."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core.doctor import LINES
from core.families import FAMILIES
from core.families.base import Family

PAGE = Path(__file__).parent.parent / "docs" / "add_your_model.md"


@pytest.fixture
def page(monkeypatch):
    """A module in which the page's code runs; the registry is as before afterwards."""
    module = ModuleType("add_your_model")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "internvl", "to be replaced by the page")
    return module


def test_the_code_of_the_page_runs(page, capsys):
    text = PAGE.read_text(encoding="utf-8")
    blocks = [
        (match[1], text[: match.start(1)].count("\n")) for match in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]
    assert len(blocks) == 6
    for source, line in blocks:
        exec(compile("\n" * line + source, str(PAGE), "exec"), page.__dict__)
    shown = capsys.readouterr().out
    assert "1 FAIL" in shown and "13 ok" in shown
    assert FAMILIES["internvl"] == "add_your_model:MyInternVL"


def test_the_page_names_what_there_is():
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("## 7.")[1].split("## 8.")[0]
    rows = [row.split("|")[1:4] for row in table.splitlines() if row.startswith("| `")]
    assert len(rows) >= 6
    for names, _, lines in rows:
        for name in re.findall(r"`(\w+)", names):
            assert hasattr(Family, name) or name == "View"
        assert {line.strip() for line in lines.split(",")} <= set(LINES)
