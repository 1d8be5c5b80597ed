"""The losses of a run as JSON lines, one per logged step, that stay exact when the run is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path

from core.atomic import write_atomically
from core.errors import GroundingError

FIELDS = ("step", "epoch", "loss", "learning_rate", "grad_norm")
FILE = "losses.jsonl"


def append_loss(path: Path, row: dict) -> None:
    """Add one row; only `FIELDS` are kept."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: row[key] for key in FIELDS if key in row}) + "\n")


def read_losses(path: str | Path) -> list[dict]:
    """The rows of a loss log, or of the log in a run's directory; a last line cut off by a kill is left out.

    Raises:
        GroundingError: no log there, or a broken line in its middle.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise GroundingError(f"there is no loss log {str(path)!r}; give a training run's directory")
    rows, lines = [], path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise GroundingError(f"line {number} of {str(path)!r} is not JSON ({error})") from error
    return rows


def rewind(path: Path, step: int) -> None:
    """Forget what was logged after `step`: a resumed run goes through those steps again."""
    if path.is_file():
        kept = [row for row in read_losses(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
