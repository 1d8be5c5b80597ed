"""See where a large multimodal model looks when it speaks, and turn that into pixel masks.

Image and prompt -> `LMM` -> `Generation` (answer and attention maps) -> noun phrases -> points -> masks -> `Grounding`
-> `RunStore`. Every stage is public in its own module; `attend_and_segment` composes them.

Shapes, everywhere: `t` output tokens, `l` layers, `n` heads, `k` visual tokens, `h w` the visual grid, `H W` pixels of
the original image, `p` phrases, `s` prompt tokens, `b` batch. Points are (x, y) in pixels of the original image at
pixel centres, sizes are (H, W), layers and heads are counted from 0.
"""

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
    "ground_dataset",
    "load_image",
    "load_lmm",
    "load_nlp",
    "load_segmenter",
    "to_grid",
]
