"""Measures models and puts them into the record: `python -m embedded.claims sd_clip:0=FOLDER clip:0=FOLDER`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from core.errors import GroundingError
from core.phrases import load_nlp
from embedded.claims.measure import SCENES, claims_settings, measure_model
from embedded.claims.record import RECORD, add_model, trained_parts
from embedded.scenes.captions import DESCRIBE


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    models = [parse_model(word) for word in options.models]
    settings, nlp = claims_settings(scenes=options.scenes), load_nlp(options.nlp)
    for name, seed, folder in models:
        measured = measure_model(folder, nlp, settings, prompt=options.prompt)
        add_model(name, seed, measured, settings, parts=trained_parts(Path(folder)), file=options.record)


def parse_model(word: str) -> tuple[str, int, str]:
    """(name, seed, folder) of "name:seed=folder".

    Raises:
        GroundingError: another form.
    """
    found = re.fullmatch(r"(\w+):(\d+)=(.+)", word)
    if not found:
        raise GroundingError(f"{word!r} is no model to measure; write name:seed=folder, such as sd_clip:0=runs/model")
    return found[1], int(found[2]), found[3]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedded.claims", description=__doc__)
    parser.add_argument("models", nargs="+", help="name:seed=folder of each model")
    parser.add_argument("--record", type=Path, default=RECORD, help="file of the record")
    parser.add_argument("--scenes", type=int, default=SCENES, help="held-out scenes, the same for all of a record")
    parser.add_argument("--prompt", default=DESCRIBE, help='that asks for a description; "" asks without words')
    parser.add_argument("--nlp", default="embedded", help="spaCy pipeline, or its directory")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    return parser


if __name__ == "__main__":
    main()
