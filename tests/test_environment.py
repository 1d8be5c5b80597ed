"""environment.yml, pyproject.toml and the imports in the code name the same packages with the same bounds."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch"}  # name in pyproject.toml -> name on conda-forge, where they differ
CONDA_ONLY = {"python", "pip", "openjdk", "spacy-model-en-core-web-lg"}  # not Python packages of the index, or data
PACKAGES = ("core", "embedded", "analysis")
OWN = {*PACKAGES, *(path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).glob("*.py"))}


def split_requirement(requirement: str) -> tuple[str, str]:
    """("spacy", ">=3.8,<4") of "spacy>=3.8,<4"; names compare with dashes and in lower case."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.\-]+)\s*(.*)", requirement).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), bounds.replace(" ", "")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def declared(project) -> dict[str, str]:
    """Everything that pyproject.toml declares, extras included: name -> bounds."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return dict(split_requirement(requirement) for group in groups for requirement in group)


@pytest.fixture(scope="module")
def environment() -> tuple[dict[str, str], dict[str, str]]:
    """Conda packages and pip packages of environment.yml: name -> bounds."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["channels"][0] == "conda-forge"
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert pip[-1] == "-e ."  # last, so that pip finds the rest installed
    assert len({split_requirement(entry)[0] for entry in conda + pip[:-1]}) == len(conda + pip[:-1])
    return dict(map(split_requirement, conda)), dict(map(split_requirement, pip[:-1]))


def test_pyproject_is_in_the_environment(declared, environment):
    conda, pip = environment
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in declared.items()}
    assert {name: bounds for name, bounds in expected.items() if {**conda, **pip}.get(name) != bounds} == {}


def test_the_environment_is_in_pyproject(declared, environment):
    conda, pip = environment
    expected = {CONDA_NAMES.get(name, name): bounds for name, bounds in declared.items()}
    found = {name: bounds for name, bounds in {**conda, **pip}.items() if name not in CONDA_ONLY}
    assert {name: bounds for name, bounds in found.items() if expected.get(name) != bounds} == {}
    assert set(conda) >= CONDA_ONLY
    assert set(pip) == {"segment-anything", "lmms-eval", "mini-racer", "playwright"}


def test_python_bound_is_the_same_everywhere(project, environment):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    minor = int(project["requires-python"].removeprefix(">=3."))
    assert environment[0]["python"] == project["requires-python"]
    assert settings["target-version"] == f"py3{minor}"
    assert f"(3, {minor})" in (ROOT / "Makefile").read_text()
    assert sys.version_info >= (3, minor)


def test_every_code_folder_is_a_package():
    """setuptools leaves folders without `__init__.py` out of a wheel, together with the data in them."""
    folders = {path.parent for top in PACKAGES for path in (ROOT / top).rglob("*.py")}
    assert {str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()} == set()


def imported_roots(paths: list[Path]) -> dict[str, set[str]]:
    """Top-level module name -> files (scripts or notebooks) that import it, lazily or not."""
    found: dict[str, set[str]] = {}
    for path in paths:
        if path.suffix == ".ipynb":
            cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
            source = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!")))
        else:
            source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


def undeclared(folders: list[str], names: set[str]) -> dict[str, set[str]]:
    """Imports under `folders` that none of the distributions `names` provides."""
    paths = [path for folder in folders for kind in ("*.py", "*.ipynb") for path in sorted((ROOT / folder).rglob(kind))]
    providers = packages_distributions()
    return {
        root: files
        for root, files in imported_roots(paths).items()
        if root not in sys.stdlib_module_names | OWN
        and not names & {split_requirement(provider)[0] for provider in providers.get(root, [])}
    }


def test_what_the_package_imports_is_declared(project):
    extras = project["optional-dependencies"]
    used = [*project["dependencies"], *extras["evaluation"], *extras["training"], *extras["vqa"]]
    assert undeclared([*PACKAGES, "notebooks"], {split_requirement(entry)[0] for entry in used}) == {}


def test_what_tests_and_benchmarks_import_is_declared(declared):
    assert undeclared(["tests", "benchmarks"], set(declared)) == {}


def test_an_undeclared_import_would_be_found(declared):
    assert "torch" in undeclared(["core"], set(declared) - {"torch"})
