"""`python -m analysis.report.figures`: draw the figures of a report again, without a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from analysis.drawings import redraw_all
from analysis.report.profiles import profile_name
from core.errors import GroundingError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when every figure was drawn, 2 when nothing could be."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report.figures", description=__doc__)
    parser.add_argument("--profile", default="embedded", help="whose report: reports/<profile> (default: embedded)")
    parser.add_argument("--output", type=Path, help="another folder, all of it")
    parser.add_argument("--style", default="", help="a style of matplotlib, by name or file (such as grayscale)")
    options = parser.parse_args(argv)
    matplotlib.use("agg")
    output = options.output or Path("reports") / profile_name(options.profile)
    try:
        drawn = redraw_all(output, style=options.style)
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(drawn)} figures drawn in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
