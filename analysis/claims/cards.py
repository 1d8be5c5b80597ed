"""What the record says of the paper's claims, on the cards of the shipped models: `python -m analysis.claims.cards`."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.claims.reading import encoder_reading, equation3_reading, places_reading, sink_reading
from analysis.claims.record import Claims, load_claims
from core.weights import FOLDER
from embedded.cards import put_claims

TOLD = {  # card: models of the record that it tells of, whether encoders are compared, whose numbers they are
    "llava": (("long", "long_picture_first"), False, "of two models that go on from this one and answer at length"),
    "llava_two_stages": (("clip",), True, "this model is seed 0 of LLaVA, CLIP"),
    "difflmm": (("sd_clip",), True, "this model is seed 0 of DiffLMM, SD + CLIP + PE + IC"),
}


def claims_section(card: str, claims: Claims) -> str:
    """What a card tells of the claims: a sentence for each, reproduced, not told apart or refuted at this scale.

    Args:
        card: a key of `TOLD`.
    """
    names, compared, whose = TOLD[card]
    own = claims.of(names)
    lines = encoder_reading(claims).splitlines() if compared else []
    for reading in (equation3_reading, sink_reading, places_reading):
        lines += reading(own).splitlines()
    scenes, split = claims.settings["scenes"], claims.settings["split"]
    return (
        f"**The paper's claims** (notebook `claims`: first {scenes} scenes of the split `{split}`, 95 % intervals over "
        f"training seeds and images; {whose}):\n\n" + "\n".join(f"- {line}" for line in lines)
    )


def write_sections(weights: Path, claims: Claims) -> list[Path]:
    """Puts its account of the claims on every card in a folder of weights; returns the cards."""
    cards = [weights / kind / "README.md" for kind in TOLD]
    for card in cards:
        card.write_text(put_claims(card.read_text(), claims_section(card.parent.name, claims)))
    return cards


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.claims.cards", description=__doc__)
    parser.add_argument("--record", default="", help="file of the record (default: the one that is shipped)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the weights with their cards")
    options = parser.parse_args(arguments)
    for card in write_sections(options.output, load_claims(options.record)):
        print(card)


if __name__ == "__main__":
    main()
