"""Retrains the embedded family: `python -m core.embedded.train` (what `make embedded` runs).

Vision encoder, then LLaVA on top of it, SAM, and the spaCy pipeline; each part can be run alone. Which parts are
finished is noted in the working directory: a killed run begins again with the part it was in (LLaVA inside it, from its
last training state). At the end LLaVA and SAM are measured on held-out scenes and their cards written.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

import torch

from core.embedded import lmm, sam_training, vision
from core.embedded.cards import write_cards

log = logging.getLogger(__name__)
PARTS = ("vision", "llava", "sam", "en")


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        finished = options.work / f"{part}.finished"
        if part in options.only and not finished.is_file():
            _train(part, options)
            finished.touch()
    if not options.no_cards:
        write_cards(options.output, scenes=options.card_scenes)


def _train(part: str, options: argparse.Namespace) -> None:
    if part == "vision":
        vision.pretrain(vision.VisionRecipe(), options.work / "vision", workers=options.workers)
    elif part == "llava":
        lmm.train(lmm.LmmRecipe(), options.work / "vision", options.output / "llava", workers=options.workers)
    elif part == "sam":
        sam_training.train(sam_training.SamRecipe(), options.output / "sam")
    else:
        from core.embedded import language

        shutil.rmtree(options.output / "en", ignore_errors=True)
        language.main(["--output", str(options.output / "en")])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.embedded.train", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to train (default: all)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "weights", help="where weights go")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/embedded"), help="intermediate results, kept for resuming"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that render scenes")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    parser.add_argument("--card-scenes", type=int, default=200, help="held-out scenes measured for the cards")
    parser.add_argument("--no-cards", action="store_true", help="do not measure and write the model cards")
    return parser


if __name__ == "__main__":
    main()
