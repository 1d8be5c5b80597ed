"""The models that come with the package: their names, and where their files lie."""

from __future__ import annotations

from pathlib import Path

from core.errors import GroundingError

FOLDER = Path(__file__).parent
SCENE = FOLDER / "scene.png"  # a picture of the kind that they know: the third scene of the split `val`, seed 0
KINDS = ("llava", "llava_two_stages", "difflmm", "sam", "en")
EMBEDDED = {"embedded": "llava"} | {f"embedded/{kind}": kind for kind in ("llava", "llava_two_stages", "difflmm")}
"""Names that `load_lmm` takes -> kind."""


def weights_path(kind: str) -> Path:
    """Directory of one embedded model: an LMM with its processor (`llava`, `llava_two_stages`, `difflmm`), the
    segmenter (`sam`) or the spaCy pipeline (`en`).

    Raises:
        GroundingError: unknown kind, or the weights are not in this checkout.
    """
    if kind not in KINDS:
        raise GroundingError(f"no embedded model is called {kind!r}; the embedded models are {', '.join(KINDS)}")
    path = FOLDER / kind
    if not path.is_dir():
        raise GroundingError(f"the embedded model {kind!r} is missing at {path}; run `make embedded` to train it")
    return path
