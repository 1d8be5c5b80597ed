"""Audit a model on this machine: `python -m core.doctor MODEL`. The exit status is 1 if a line failed."""

from __future__ import annotations

import argparse
import sys

from core.doctor.examination import LINES, examine
from core.errors import GroundingError
from core.families.base import GEOMETRIES
from core.lmm import load_lmm


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if no line failed, 1 if one did, 2 if the model could not be loaded."""
    options = _parser().parse_args(arguments)
    loading = {name: getattr(options, name) for name in ("device", "dtype", "geometry", "template")}
    further = {"attn_implementation": options.attn, "device_map": options.device_map, "quantization": options.quantize}
    try:
        lmm = load_lmm(options.model, **loading, **further)
        found = examine(lmm, image=options.image, lines=options.lines or tuple(LINES), progress=not options.quiet)
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found)
    return 0 if found.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.doctor", description=__doc__)
    parser.add_argument("model", help="directory, hub id or 'embedded'")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--geometry", default="processor", choices=GEOMETRIES)
    parser.add_argument("--template", help="prompt template, for a checkpoint without a chat template")
    parser.add_argument("--image", default="embedded", help="picture of the conversations; a small one saves memory")
    parser.add_argument("--attn", help="attention implementation to load with, such as sdpa or flash_attention_2")
    parser.add_argument("--device-map", help="such as auto, in place of --device")
    parser.add_argument("--quantize", choices=("4bit", "8bit"))
    parser.add_argument(
        "--lines", nargs="+", metavar="LINE", choices=tuple(LINES), help=f"only these of: {'; '.join(LINES)}"
    )
    parser.add_argument("--quiet", action="store_true", help="the table only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
