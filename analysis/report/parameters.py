"""A notebook's declared parameters, and the check that values fit them before any kernel starts.

papermill itself only warns about a name it does not know and never looks at types, so that a typo runs the defaults.
"""

from __future__ import annotations

import ast
import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from core.errors import GroundingError

OUTPUT_DIR = "output_dir"  # every notebook declares it; the runner alone sets it
RUNS_DIR = "runs_dir"  # folder of the answers that notebooks share; the runner sets it unless a profile does
NOTEBOOK = "notebook"  # a parameter file's key for its notebook, where that has another name than the file
_ACCEPTS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list, tuple),
    "tuple": (list, tuple),
    "dict": (dict,),
}


@dataclass(frozen=True)
class DeclaredParameter:
    """One line `name: annotation = default  # help` of a parameters cell; the annotation is None where it has none."""

    name: str
    annotation: str | None
    default: str
    help: str


def declared_parameters(notebook: Path) -> dict[str, DeclaredParameter]:
    """What the cell tagged `parameters` of a notebook declares, in its order.

    Raises:
        GroundingError: the file is not a notebook, names no kernel, declares no `output_dir`, or a `notebook`, or
            has a line in its parameters cell that papermill would pass over.
    """
    try:
        with _quiet_papermill():
            found = papermill.inspect_notebook(notebook)
        lost = _assigned_names(notebook) - set(found)
    except (ValueError, SyntaxError) as error:
        raise GroundingError(f"{notebook} cannot be read as a notebook with a kernel: {error}") from error
    if lost:
        raise GroundingError(
            f"papermill does not see the parameters {', '.join(sorted(lost))} of {notebook}; their lines must hold "
            "no second `=` (not in the comment either) and no `|` in the annotation"
        )
    declared = {
        name: DeclaredParameter(
            name=name,
            annotation=None if entry["inferred_type_name"] == "None" else entry["inferred_type_name"],
            default=entry["default"],
            help=entry["help"],
        )
        for name, entry in found.items()
    }
    if OUTPUT_DIR not in declared:
        raise GroundingError(
            f"{notebook} declares no `{OUTPUT_DIR}: str` in a cell tagged `parameters` "
            f"(it declares: {', '.join(declared) or 'nothing'}), so its results would have no place to go"
        )
    if NOTEBOOK in declared:
        raise GroundingError(
            f"{notebook} declares a parameter `{NOTEBOOK}`, the key by which a parameter file names its notebook; "
            "call it otherwise"
        )
    return declared


@contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Without papermill's own warnings about lines that it passes over: `declared_parameters` raises instead."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _assigned_names(notebook: Path) -> set[str]:
    """Names that the cells tagged `parameters` assign, as Python itself reads them."""
    names = set()
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def parse_value(text: str, annotation: str | None) -> Any:
    """The value of a command-line word: the word itself for `str`, a number for `float`, otherwise read as YAML."""
    if annotation == "str":
        return text
    if annotation == "float" and re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", text):
        return float(text)  # YAML reads 1e-3 as a word
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def fits(value: Any, annotation: str | None) -> bool:
    """Whether a value fits an annotation such as `int`, `list[str]`, `dict` or `Optional[float]`.

    An absent annotation, or one of a kind not known here, fits everything.
    """
    if annotation is None:
        return True
    base, _, inside = annotation.strip().partition("[")
    inside = inside.rstrip().removesuffix("]")
    base = base.strip().lower()
    if base == "optional":
        return value is None or fits(value, inside)
    if base not in _ACCEPTS:
        return True
    if not isinstance(value, _ACCEPTS[base]) or (isinstance(value, bool) and base != "bool"):
        return False
    if base == "list" and inside:
        return all(fits(element, inside) for element in value)
    return True


def unknown_name_message(name: str, known: list[str], where: str) -> str:
    """What is wrong with a name, which known names are near it, and which there are."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"{where} has no parameter {name!r}; {hint}"


def parameter_problems(notebook: Path, values: Mapping[str, Any], *, name: str = "") -> list[str]:
    """Every reason why `values` cannot be given to `notebook`; empty when they fit.

    Args:
        name: of the job, for the messages; the notebook's by default.
    """
    declared, where = declared_parameters(notebook), name or notebook.stem
    settable = [name for name in declared if name != OUTPUT_DIR]
    problems = []
    for key, value in values.items():
        if key == OUTPUT_DIR:
            problems.append(f"{where}: `{OUTPUT_DIR}` is set by the runner; use --output")
        elif key not in declared:
            problems.append(unknown_name_message(key, settable, where))
        elif not fits(value, declared[key].annotation):
            problems.append(
                f"{where}: {key} must be {declared[key].annotation}, "
                f"got {value!r} ({type(value).__name__}); the default is {declared[key].default}"
            )
    return problems
