"""The examples in the docstrings of the front door run and show what they say."""

import doctest
import inspect
import sys

import pytest

import core
from analysis.explorer.explorer import Explorer
from core.several import ground_images
from core.streaming import AnswerStream

NAMES = [name for name in core.__all__ if callable(getattr(core, name))]
BESIDE = {"Explorer": Explorer, "ground_images": ground_images, "AnswerStream": AnswerStream}


@pytest.mark.parametrize("name", [*NAMES, *BESIDE])
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    thing = inspect.unwrap(BESIDE[name] if name in BESIDE else getattr(core, name))
    found = doctest.DocTestFinder(recurse=False).find(thing, name, module=sys.modules[thing.__module__])
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example in its docstring"
    for test in examples:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert result.failed == 0, f"the example of {name} does not show what it says"


def test_what_is_no_function_is_a_table_of_presets() -> None:
    assert [name for name in core.__all__ if name not in NAMES] == ["PRESETS"]
