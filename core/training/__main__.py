"""Train LLaVA or DiffLMM from a shell: `python -m core.training --stage 1 --model DIR --data JSON --output DIR`.

The same command under `accelerate launch --config_file configs/<file>.yaml -m` or `torchrun --nproc-per-node N -m` runs
on several devices. Started again with the same options, it goes on after the last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from core.errors import GroundingError
from core.training.recipes import RECIPES, Recipe, stage_recipe
from core.training.run import RunOptions, train


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if it went well, 2 if the input was at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    needed = ("output",) if options.merge else ("model", "data") if options.dry_run else ("model", "data", "output")
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing:
        parser.error(f"give {', '.join(missing)}")
    try:
        _run(options)
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.merge:
        from core.training.export import merge_sharded

        print(merge_sharded(options.output))
        return
    recipe = _recipe(options)
    where = RunOptions(**_given(options, RunOptions))
    if options.dry_run:
        from core.training.budget import dry_run

        rate = None if options.rate is None else options.rate * 1e12
        print(dry_run(options.model, options.data, recipe=recipe, options=where, images=options.images, rate=rate))
        return
    print(train(options.model, options.data, options.output, recipe=recipe, options=where, images=options.images))


def _recipe(options: argparse.Namespace) -> Recipe:
    return stage_recipe(options.stage, options.recipe, **_given(options, Recipe))


def _given(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that were set on the command line."""
    values = {field.name: getattr(options, field.name) for field in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m core.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="1: projector; 2: instruction tuning")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="paper", help="llava_1_5: LLaVA's public scripts")
    parser.add_argument("--model", help="checkpoint of LLaVA to start from: directory, hub id or 'embedded'")
    parser.add_argument("--data", type=Path, help="LLaVA-format JSON")
    parser.add_argument("--images", type=Path, help="folder of the pictures (default: images beside the JSON)")
    parser.add_argument("--output", type=Path, help="directory of the run")
    parser.add_argument("--dry-run", action="store_true", help="print parameters, tokens, memory and time, and stop")
    parser.add_argument("--rate", type=float, help="for --dry-run: TFLOP/s that one device reaches (default: timed)")
    parser.add_argument("--merge", action="store_true", help="make output/model of a run with sharded weights")
    for title, kind in (("changes to the recipe", Recipe), ("run", RunOptions)):
        group, hints = parser.add_argument_group(title), get_type_hints(kind)
        for field in fields(kind):
            name = f"--{field.name.replace('_', '-')}"
            if hints[field.name] is bool:
                group.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
            else:
                number = hints[field.name] if hints[field.name] in (int, str) else float
                group.add_argument(name, type=number, metavar=number.__name__.upper())
    return parser


if __name__ == "__main__":
    sys.exit(main())
