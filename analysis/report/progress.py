"""One progress bar over the cells of several notebooks: redrawn in a terminal, a line now and then in a log."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from io import TextIOBase

from tqdm import tqdm

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class NotebookProgress:
    """Counts cells of notebooks run one after another.

    Args:
        cells: name of each notebook -> its number of cells, in the order of running.
        stream: where to write; standard error by default.
        every: seconds between two lines of the same notebook when the stream is not a terminal.
    """

    def __init__(self, cells: Mapping[str, int], *, stream: TextIOBase | None = None, every: float = 30.0) -> None:
        self._cells = dict(cells)
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._terminal = self._stream.isatty()
        self._bar = tqdm(
            total=sum(self._cells.values()),
            unit="cell",
            file=self._stream,
            dynamic_ncols=True,
            disable=not self._terminal,
        )
        self._name = ""
        self._done = 0
        self._begun = self._last_line = 0.0

    def __enter__(self) -> NotebookProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def start(self, name: str) -> None:
        """The named notebook begins."""
        self._name, self._done = name, 0
        self._begun = self._last_line = time.monotonic()
        self._bar.set_description(self._label())
        self._bar.set_postfix_str("")
        if not self._terminal:
            self._print(f"{self._label()}: started, {self._cells[name]} cells")

    def advance(self) -> None:
        """One more cell of the current notebook is done."""
        self._done += 1
        self._bar.update()
        self._bar.set_postfix_str("")
        self._line_now_and_then("")

    def end(self, outcome: str) -> None:
        """The current notebook is over; `outcome` is a few words such as "finished" or "failed: ..."."""
        seconds = time.monotonic() - self._begun
        self._bar.update(max(self._cells[self._name] - self._done, 0))
        self._print(f"{self._label()}: {outcome} ({seconds:.0f} s)")

    def write(self, text: str) -> int:
        """Shows the last line of what a running cell printed (this and `flush` make the object a text stream)."""
        lines = [line.strip() for line in re.split(r"[\r\n]", _ANSI.sub("", text)) if line.strip()]
        if lines:
            self._bar.set_postfix_str(lines[-1][:60])
            self._line_now_and_then(lines[-1][:160])
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def _label(self) -> str:
        number = list(self._cells).index(self._name) + 1
        return f"[{number}/{len(self._cells)}] {self._name}"

    def _line_now_and_then(self, text: str) -> None:
        now = time.monotonic()
        if self._terminal or now - self._last_line < self._every:
            return
        self._last_line = now
        where = f"cell {min(self._done + 1, self._cells[self._name])} of {self._cells[self._name]}"
        self._print(f"{self._label()}: {where}, {now - self._begun:.0f} s" + (f": {text}" if text else ""))

    def _print(self, line: str) -> None:
        self._bar.clear()
        print(line, file=self._stream, flush=True)
        self._bar.refresh()
