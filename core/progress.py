"""One progress bar for long work: lively in a terminal, a line now and then in logs and exported pages."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None = None, *, title: str, shown: bool = True, **options: Any) -> tqdm:
    """A bar over images, on standard output.

    Args:
        items: what is gone through; None for a bar that is moved by hand.
        title: what is being done.
        shown: false for none.
        options: further ones of `tqdm.tqdm`, such as `total`.
    """
    from tqdm import tqdm  # not tqdm.auto: its widgets leave nothing in logs and exported pages

    pace = 0.1 if sys.stdout.isatty() else 30
    return tqdm(items, desc=title, unit="image", file=sys.stdout, mininterval=pace, disable=not shown, **options)
