"""FastVLM: as LLaVA, with a convolutional tower whose feature map is the grid."""

from __future__ import annotations

from core.families.llava import Llava


class FastVlm(Llava):
    """The stride of the tower is the processor's `patch_size`; its configuration has none."""
