"""Vision towers of tiny random models that show where each token's pixels are."""

from __future__ import annotations

from copy import deepcopy

import torch
from einops import rearrange

from core.lmm import LMM

MERGERS = ("merger.", "connector", "multi_modal_projector")  # behind the tower, in each family's words


def transparent(lmm: LMM) -> LMM:
    """The same model with a vision tower in which no token learns of another: its blocks add nothing, every place has
    the same position, a patch is the mean of its pixels, and merged patches are the mean of the patches.
    """
    model = deepcopy(lmm.model)
    tower = (
        getattr(model.model, "vision_tower", None) or getattr(model.model, "visual", None) or model.model.vision_model
    )
    for name, weight in tower.named_parameters():
        if any(part.isdigit() for part in name.split(".")) and ".merger" not in f".{name}":
            weight.data.zero_()
        elif "position" in name or "pos_embed" in name:
            weight.data[:] = weight.data.flatten(0, -2)[:1]
        elif weight.ndim >= 4:
            weight.data[:] = weight.data.mean((-1, -2), keepdim=True)
        elif "patch_embedding" in name and weight.ndim == 2:
            pixels = rearrange(weight.data, "o (s c) -> o s c", c=3)
            pixels[:] = pixels.mean(1, keepdim=True)
    width = model.config.vision_config.hidden_size
    for name, weight in model.model.named_parameters():
        if any(part in name for part in MERGERS) and weight.ndim == 2 and weight.shape[1] % width == 0:
            order = "o (d m) -> o d m" if "merging_layer" in name else "o (m d) -> o d m"
            patches = rearrange(weight.data, order, d=width)
            patches[:] = patches.mean(-1, keepdim=True)
            weight.data.mul_("q_proj" not in name)  # pooling by attention becomes the mean
    return LMM(model, lmm.processor, geometry=lmm.family.geometry)


def blurring(lmm: LMM) -> LMM:
    """The same model with a convolutional tower that blurs, so that nothing cancels."""
    model = deepcopy(lmm.model)
    for module in model.model.vision_tower.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.fill_(1 / module.weight[0].numel())
    return LMM(model, lmm.processor, geometry=lmm.family.geometry)
