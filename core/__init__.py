"""See where a large multimodal model looks when it speaks, and turn that into pixel masks.

Image and prompt -> `LMM` -> `Generation` (answer and attention maps) -> noun phrases -> points -> masks -> `Grounding`
-> `RunStore`. Every stage is public in its own module; `attend_and_segment` composes them. A name is imported when it
is first used, so that what needs no model starts without torch.

Shapes, everywhere: `t` output tokens, `l` layers, `n` heads, `k` visual tokens, `h w` the visual grid, `H W` pixels of
the original image, `p` phrases, `s` prompt tokens, `b` batch. Points are (x, y) in pixels of the original image at
pixel centres, sizes are (H, W), layers and heads are counted from 0.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.answer_files import read_answers
    from core.answers import ground_answers
    from core.attention import to_grid
    from core.errors import GroundingError
    from core.generation import Generation
    from core.geometry import View
    from core.images import load_image
    from core.lmm import LMM, load_lmm
    from core.masks import Segmenter, load_segmenter
    from core.options import PRESETS, GroundOptions
    from core.phrases import Phrase, load_nlp
    from core.pipeline import Grounding, attend_and_segment, ground
    from core.records import RunStore
    from core.run import ground_dataset

_HOMES = {
    "answer_files": ("read_answers",),
    "answers": ("ground_answers",),
    "attention": ("to_grid",),
    "errors": ("GroundingError",),
    "generation": ("Generation",),
    "geometry": ("View",),
    "images": ("load_image",),
    "lmm": ("LMM", "load_lmm"),
    "masks": ("Segmenter", "load_segmenter"),
    "options": ("PRESETS", "GroundOptions"),
    "phrases": ("Phrase", "load_nlp"),
    "pipeline": ("Grounding", "attend_and_segment", "ground"),
    "records": ("RunStore",),
    "run": ("ground_dataset",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LMM",
    "PRESETS",
    "Generation",
    "GroundOptions",
    "Grounding",
    "GroundingError",
    "Phrase",
    "RunStore",
    "Segmenter",
    "View",
    "attend_and_segment",
    "ground",
    "ground_answers",
    "ground_dataset",
    "load_image",
    "load_lmm",
    "load_nlp",
    "load_segmenter",
    "read_answers",
    "to_grid",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
