"""The Java programs behind caption scores (of pycocoevalcap): run on files, with a time limit, without pipes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core.errors import GroundingError

NO_JAVA = (
    "METEOR and CIDEr need a Java runtime, which is not here (Debian, Ubuntu: apt-get install default-jre-headless)"
)
NO_PACKAGE = "METEOR and CIDEr need pycocoevalcap (pip install pycocoevalcap)"
METEOR_JAR, TOKENIZER_JAR = Path("meteor", "meteor-1.5.jar"), Path("tokenizer", "stanford-corenlp-3.4.1.jar")
STATISTICS = 23  # numbers that METEOR keeps of a text
SECONDS_AT_LEAST, SECONDS_EACH = 300.0, 0.2  # of loading, and of a text


def missing() -> str | None:
    """Why caption scores cannot be computed here; None where they can."""
    if find_spec("pycocoevalcap") is None:
        return NO_PACKAGE
    return None if shutil.which("java") else NO_JAVA


def tokenize(texts: Sequence[str], *, timeout: float | None = None) -> list[str]:
    """Texts in lower case, their tokens (Penn Treebank's) apart by spaces, without punctuation; as COCO's evaluator
    prepares captions.

    Raises:
        GroundingError: no Java, or it fails or takes longer than `timeout` seconds.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    with tempfile.TemporaryDirectory() as folder:
        given = _write(Path(folder, "texts"), texts)
        command = ["-cp", str(_jar(TOKENIZER_JAR)), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
        lines = _run([*command, "-lowerCase", str(given)], Path(folder), len(texts), timeout)
    if len(lines) != len(texts):
        raise GroundingError(f"the tokenizer gave {len(lines)} lines for {len(texts)} texts")
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in lines]


def meteor_statistics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, timeout: float | None = None
) -> Float[np.ndarray, "texts 23"]:
    """METEOR 1.5's sufficient statistics of every text, from the stock program; `analysis.gcg.captions` makes scores of
    them.

    Args:
        candidates: tokenized texts.
        references: of each, at least one.
        timeout: seconds; by default 300 and 0.2 for each text.

    Raises:
        GroundingError: as `tokenize`.
    """
    most = max((len(each) for each in references), default=1)
    padded = [[*each, *[each[-1]] * (most - len(each))] for each in references]
    with tempfile.TemporaryDirectory() as folder:
        said = _write(Path(folder, "candidates"), candidates)
        true = _write(Path(folder, "references"), [text for each in padded for text in each])
        command = ["-Xmx1G", "-Dfile.encoding=UTF-8", "-jar", str(_jar(METEOR_JAR)), str(said), str(true)]
        options = ["-l", "en", "-norm", "-r", str(most), "-ssOut"]
        lines = _run([*command, *options], Path(folder), len(candidates), timeout)
    try:
        found = np.array([[float(number) for number in line.split()] for line in lines]).reshape(-1, STATISTICS)
    except ValueError as error:
        raise GroundingError(f"METEOR answered {lines[0][:80]!r}, which are not {STATISTICS} numbers") from error
    if len(found) != len(candidates):
        raise GroundingError(f"METEOR gave {len(found)} lines for {len(candidates)} texts")
    return found


def _jar(path: Path) -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise GroundingError(NO_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / path


def _write(path: Path, texts: Sequence[str]) -> Path:
    """A line for each text, whatever breaks lines within it."""
    path.write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8", newline="\n")
    return path


def _run(arguments: list[str], folder: Path, n_texts: int, timeout: float | None) -> list[str]:
    java, limit = shutil.which("java"), timeout or SECONDS_AT_LEAST + SECONDS_EACH * n_texts
    if java is None:
        raise GroundingError(NO_JAVA)
    out, err = folder / "out", folder / "err"
    with out.open("wb") as output, err.open("wb") as errors:
        try:
            status = subprocess.run(
                [java, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise GroundingError(f"Java did not finish {n_texts} texts within {limit:.0f} seconds") from error
    if status:
        told = err.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise GroundingError(f"Java ended with status {status}: {' / '.join(told[-3:]) or 'no message'}")
    return out.read_text(encoding="utf-8").split("\n")[:-1]
