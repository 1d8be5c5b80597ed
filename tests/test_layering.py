"""Imports point one way (notebooks -> analysis -> embedded -> core), and importing does no work."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRESENTATION = {
    "matplotlib",
    "pandas",
    "papermill",
    "nbformat",
    "nbconvert",
    "nbclient",
    "IPython",
    "ipywidgets",
    "jupyter",
}
MODELS = {"transformers", "segment_anything", "spacy", "diffusers", "peft"}
FONT = {"matplotlib.font_manager", "matplotlib.ft2font", "matplotlib.textpath", "matplotlib.path"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, lazy) of every absolute import in a file; lazy ones stand inside a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
            yield node.module, lazy


def offences(folder: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module, lazy in imports(path)
        if module.split(".")[0] in forbidden and not is_glyph_outline(path, module, lazy)
    ]


def is_glyph_outline(path: Path, module: str, lazy: bool) -> bool:
    """The one exception: the embedded scenes draw glyphs of the font that matplotlib ships."""
    parent = module if module in FONT else module.rpartition(".")[0]
    package = module.split(".")[0] == "matplotlib" and (module == "matplotlib" or "pyplot" not in module)
    return (
        lazy and path.parent == ROOT / "embedded" / "scenes" and package and (parent in FONT or module == "matplotlib")
    )


def test_core_knows_nothing_of_presentation():
    assert offences("core", PRESENTATION | {"embedded", "analysis", "notebooks", "tests"}) == []


def test_the_workshop_knows_core_alone():
    assert offences("embedded", PRESENTATION | {"analysis", "notebooks", "tests"}) == []


def test_analysis_loads_no_model():
    assert offences("analysis", MODELS | {"notebooks", "tests"}) == []


def test_the_check_sees_lazy_and_eager_imports(tmp_path):
    source = tmp_path / "example.py"
    source.write_text("import pandas as pd\ndef f():\n    from matplotlib import pyplot\n")
    assert set(imports(source)) == {("pandas", False), ("matplotlib.pyplot", True), ("matplotlib", True)}
    glyphs = ROOT / "embedded" / "scenes" / "glyphs.py"
    assert not is_glyph_outline(glyphs, "matplotlib.pyplot", True)
    assert not is_glyph_outline(glyphs, "matplotlib.textpath.TextPath", False)
    assert is_glyph_outline(glyphs, "matplotlib.textpath.TextPath", True)
    assert not is_glyph_outline(ROOT / "core" / "points.py", "matplotlib.textpath.TextPath", True)


WATCHED_IMPORT = """
import importlib, pkgutil, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"import reaches for the network: {event} {arguments}")

import torch  # its own import is not ours to judge
sys.addaudithook(watch)
package = importlib.import_module(sys.argv[1])
modules = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
subclasses = ("core.encoders.", "core.cambrian.")  # of transformers' models
models = [name for name in modules if name.startswith(subclasses)]
for name in sorted(set(modules) - set(models)):
    importlib.import_module(name)
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
for name in models:  # loaded by register_encoders and register_cambrian only; still without the network
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("core", MODELS | PRESENTATION | {"embedded"}), ("embedded", MODELS | PRESENTATION), ("analysis", MODELS)],
)
def test_importing_every_module_is_light_and_offline(package, forbidden):
    result = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT, package],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert forbidden & set(result.stdout.split()) == set()


WITHOUT_THE_WORKSHOP = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("embedded", "analysis"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from core import attend_and_segment, load_lmm, load_nlp, load_segmenter
lmm = load_lmm("embedded", geometry="pad", device="cpu")
found = attend_and_segment(
    "embedded", "Describe the image in detail.", lmm=lmm, segmenter=load_segmenter(), nlp=load_nlp(), max_new_tokens=24
)
print(len(found.phrases), len(found.masks))
"""


def test_core_grounds_without_the_workshop_that_trained_its_models():
    command = [sys.executable, "-c", WITHOUT_THE_WORKSHOP]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    phrases, masks = map(int, result.stdout.split())
    assert phrases == masks > 0
