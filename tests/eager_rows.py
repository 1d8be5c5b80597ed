"""The reference of all attention rows: transformers' own eager attention."""

from __future__ import annotations

from copy import deepcopy

import torch
from PIL import Image

from core.lmm import LMM


def options(lmm: LMM, new: int) -> dict:
    """Of greedy answers of `new` tokens. A random model may write the image token, which cannot be replayed."""
    return {"max_new_tokens": new, "do_sample": False, "suppress_tokens": [lmm.family.image_token_id]}


def eager_rows(
    lmm: LMM, images: list[Image.Image], text: str, new: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One prompt alone, in float64.

    Returns:
        (new ids [t], their rows [t, l, n, k], mean [k] of the prompt's rows behind the last image but the last).
    """
    model = deepcopy(lmm.model)
    model.set_attn_implementation("eager")
    inputs = lmm.processor(images=[images], text=[text], return_tensors="pt", **lmm.family.processor_options)
    inputs.pop("labels", None)
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items() if isinstance(v, torch.Tensor)}
    found = model.generate(**inputs, **options(lmm, new), output_attentions=True, return_dict_in_generate=True)
    columns = (inputs["input_ids"][0] == lmm.family.image_token_id).nonzero()[:, 0]
    length, rows = inputs["input_ids"].shape[1], []
    for step, layers in enumerate(found.attentions):
        at = [columns - (length + step - layer.shape[-1]) for layer in layers]  # a sliding cache drops the oldest keys
        kept = [layer[0, :, -1, a.clamp(min=0)] * (a >= 0) for layer, a in zip(layers, at, strict=True)]
        rows.append(torch.stack(kept))
    behind = [layer[0, :, int(columns.max()) + 1 : length - 1][..., columns] for layer in found.attentions[0]]
    return found.sequences[0, length:], torch.stack(rows), torch.stack(behind).mean((0, 1, 2))
