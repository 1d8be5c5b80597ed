"""CLIP, DINOv2, ConvNeXt or several of them side by side: the comparison encoders of the paper's Table 5."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from core.encoders.frozen import FrozenEncoder, PositionalEncoding, as_tokens, check_picture, to_grid_size
from core.encoders.normalisation import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from core.errors import GroundingError

BRANCH = ("config", "layer", "skip", "cell", "width", "mean", "std")


@no_type_check  # transformers gives it an __init__ with further keywords
class CombinedVisionConfig(PreTrainedConfig):
    """What `CombinedVisionModel` is made of.

    Fields:
        branches: for each a dict with the encoder's `config`, `layer` (index into its hidden states, None for its last
            output after the final norm), `skip` (tokens in front of the patches), `cell` (its pixels per cell),
            `width` (its channels), and `mean`, `std` (its own normalisation); `branch` makes one.
        positional_encoding: a learnable vector per cell is added.
        image_size, patch_size, image_mean, image_std, resize: as for `DiffusionVisionConfig`.
    """

    model_type = "combined_vision"
    base_config_key = "vision_config"

    branches: list[dict[str, Any]] | None = None
    positional_encoding: bool = False
    image_size: int = 336
    patch_size: int = 14
    image_mean: list[float] | tuple[float, ...] = CLIP_MEAN
    image_std: list[float] | tuple[float, ...] = CLIP_STD
    resize: str = "bicubic"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.branches = [dict(branch) for branch in self.branches or []]
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        super().__post_init__(**kwargs)
        check_picture(self)
        for number, given in enumerate(self.branches):
            if set(given) != set(BRANCH):
                raise GroundingError(f"branch {number} has the fields {sorted(given)}, but needs {sorted(BRANCH)}")

    @property
    def hidden_size(self) -> int:
        """Channels of all branches together."""
        return sum(branch["width"] for branch in self.branches)


class CombinedVisionModel(FrozenEncoder):
    """pixel_values [b, 3, H, W] -> features [b, k, c]: frozen encoders on the same grid, concatenated.

    Each branch sees the picture at grid x its own cell size, with its own normalisation. Only the positional encoding,
    if there is one, learns.

    Source: paper section 4.4, Table 5 (CLIP, DINOv2, CLIP + DINOv2, ConvNeXt CLIP in the recipe of LLaVA).
    """

    config_class = CombinedVisionConfig
    base_model_prefix = "combined_vision"

    def __init__(self, config: CombinedVisionConfig):
        super().__init__(config)
        if not config.branches:
            raise GroundingError(
                "a combined encoder needs at least one branch; core.encoders.combined.branch makes them"
            )
        self.towers = nn.ModuleList(AutoModel.from_config(_sub_config(given)) for given in config.branches)
        side = config.image_size // config.patch_size
        self.positions = None
        if config.positional_encoding:
            self.positions = PositionalEncoding(side, side, config.hidden_size, std=config.initializer_range)
        self.post_init()
        self.train(self.training)

    def frozen_parts(self) -> list[nn.Module]:
        """Every branch."""
        return list(self.towers)

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """ "features": [b, h, w, c], of all branches side by side."""
        size, unit = self.grid(pixel_values), self.unit_pixels(pixel_values)
        return {"features": torch.cat([self._branch(number, unit, size) for number in range(len(self.towers))], -1)}

    def from_frozen(self, frozen: dict[str, Tensor]) -> BaseModelOutputWithPooling:
        """Adds the positional encoding, if there is one."""
        features = frozen["features"]
        return as_tokens(features if self.positions is None else self.positions(features))

    @torch.no_grad()
    def _branch(self, number: int, unit: Tensor, size: tuple[int, int]) -> Float[Tensor, "b h w c"]:
        given, tower = self.config.branches[number], self.towers[number]
        pixels_size = (size[0] * given["cell"], size[1] * given["cell"])
        pixels = self.branch_pixels(unit, size=pixels_size, mean=given["mean"], std=given["std"])
        options: dict[str, Any] = {"output_hidden_states": True} if given["layer"] is not None else {}
        if tower.config.model_type == "clip_vision_model":
            options["interpolate_pos_encoding"] = pixels_size != (tower.config.image_size,) * 2
        output = tower(pixels, **options)
        hidden = output.last_hidden_state if given["layer"] is None else output.hidden_states[given["layer"]]
        if hidden.ndim == 4:  # a convolutional encoder gives [b, c, h, w]
            return to_grid_size(hidden, size).permute(0, 2, 3, 1)
        return hidden[:, given["skip"] :].unflatten(1, size)


def branch(
    config: PreTrainedConfig, *, layer: int | str | None = "auto", cell: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """One branch of a combined encoder, with the usual choices for its family.

    Args:
        config: of a CLIP vision tower, a DINOv2 (with or without registers), CLIP's ConvNeXt, or a timm model that
            gives a grid (`TimmWrapperConfig`; CLIP's ConvNeXt is published so). For weights with another
            normalisation than CLIP's (ConvNeXt, timm) or ImageNet's (DINOv2), change `mean` and `std` in the result.
        layer: "auto" is -2 for CLIP as in LLaVA, and the last output for the others as in the reference.
        cell: pixels per cell; by default the patch size, with four stages of ConvNeXt or for timm models 32.
        width: channels; needed for timm models only.

    Raises:
        GroundingError: a family without a rule here.
    """
    rules = {
        "clip_vision_model": (-2, 1, CLIP_MEAN, CLIP_STD),
        "dinov2": (None, 1, IMAGENET_MEAN, IMAGENET_STD),
        "dinov2_with_registers": (None, 1 + getattr(config, "num_register_tokens", 0), IMAGENET_MEAN, IMAGENET_STD),
        "convnext": (None, 0, CLIP_MEAN, CLIP_STD),
        "timm_wrapper": (None, 0, CLIP_MEAN, CLIP_STD),
    }
    if config.model_type not in rules:
        raise GroundingError(
            f"no rule for a branch of type {config.model_type!r}; use one of {', '.join(rules)}, or write the "
            f"dict with {', '.join(BRANCH)} yourself"
        )
    usual, skip, mean, std = rules[config.model_type]
    if width is None:
        width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if width is None:
        raise GroundingError(f"a {config.model_type} does not say how many channels it gives; pass width")
    return {
        "config": {key: value for key, value in config.to_dict().items() if key != "_name_or_path"},
        "layer": usual if layer == "auto" else layer,
        "skip": skip,
        "cell": _cell(config) if cell is None else cell,
        "width": width,
        "mean": list(mean),
        "std": list(std),
    }


def combine(
    *towers: PreTrainedModel, branches: list[dict[str, Any]] | None = None, **options: Any
) -> CombinedVisionModel:
    """A combined encoder that holds copies of loaded encoders' weights.

    Args:
        towers: CLIPVisionModel, Dinov2Model, ConvNextModel, TimmWrapperModel...
        branches: one for each, from `branch`; by default each family's usual one.
        options: fields of `CombinedVisionConfig`.

    Raises:
        GroundingError: no towers, another number of branches, or a family without a rule.
    """
    branches = [branch(tower.config) for tower in towers] if branches is None else branches
    if len(branches) != len(towers):
        raise GroundingError(f"{len(towers)} encoders were given with {len(branches)} branches; give one for each")
    model = CombinedVisionModel(CombinedVisionConfig(branches=branches, **options))
    for own, tower in zip(model.towers, towers, strict=True):
        own.load_state_dict(tower.state_dict())
    return model.eval()


def _cell(config: PreTrainedConfig) -> int:
    """Pixels of the picture per cell of the encoder's output."""
    if config.model_type == "timm_wrapper":
        return 32
    return config.patch_size * (2 ** (len(config.depths) - 1) if config.model_type == "convnext" else 1)


def _sub_config(given: dict[str, Any]) -> PreTrainedConfig:
    values = dict(given["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)
