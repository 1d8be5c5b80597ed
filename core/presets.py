"""Named option sets of `ground` and `attend_and_segment`: the paper's, and what its released code does where it
differs.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The text of the paper: all layers and heads, equation 3, mean over the noun's tokens, one point, the last mask.
    "paper": {},
    # Table 4's ablation without equation 3, and with the map as a mask prompt.
    "no-normalization": {"normalization": "none"},
    "mask-prompt": {"sam_prompt": "mask"},
    # The pilot study keeps all three masks of a phrase as separate predictions.
    "pilot-study": {"mask_choice": "all"},
    # Code of October 2024: its capture keeps head H-2 of every layer (needs per_head=True); its demo also reads one
    # token late.
    "reference-v1": {"heads": (-2,)},
    "reference-v1-demo": {"heads": (-2,), "token_offset": 1},
    # Code of 2025: all heads, maximum over the noun's tokens.
    "reference-v2": {"aggregation": "max"},
}
