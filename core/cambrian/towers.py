"""Cambrian-1's encoders: transformers' and timm's own classes, and the grid of features that each one gives."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from core.cambrian.aggregator import resampled
from core.errors import GroundingError


class Tower(nn.Module):
    """A frozen encoder: a square picture in, a square grid of features out.

    Args:
        given: its description, see `core.cambrian.configuration.check_tower`.
    """

    def __init__(self, given: dict[str, Any]):
        super().__init__()
        self.given = given
        timm = "architecture" in given["body"]
        self.body = timm_body(given["body"]) if timm else AutoModel.from_config(transformers_config(given["body"]))
        self._features = self._of_timm if timm else self._of_transformers

    @torch.no_grad()
    def forward(self, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k c"]:
        """The features row by row, k = side * side."""
        return self._features(pictures).flatten(1, 2)

    def _of_transformers(self, pictures: Tensor) -> Tensor:
        layer = self.given["layer"]
        output = self.body(pictures, output_hidden_states=layer is not None)
        tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
        return self._on_grid(tokens[:, self.given["skip"] :])

    def _of_timm(self, pictures: Tensor) -> Tensor:
        if not self.given["stages"]:
            found = self.body(pictures)  # without pooling and head, all tokens
            return self._on_grid(found[:, self.given["skip"] :])
        found, hidden = [], self.body.stem(pictures)
        for stage in self.body.stages:
            hidden = stage(hidden)
            found.append(resampled(hidden.permute(0, 2, 3, 1), self.given["side"]))
        return torch.cat(found[-self.given["stages"] :], -1)

    def _on_grid(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        return resampled(tokens.unflatten(1, (side, side)), self.given["side"])


def transformers_config(body: dict[str, Any]) -> Any:
    """The configuration that a dict describes."""
    values = dict(body)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def timm_body(body: dict[str, Any]) -> nn.Module:
    """A timm model without its pooling and its head.

    Raises:
        GroundingError: timm is absent, or does not know the architecture.
    """
    try:
        import timm
    except ImportError as error:
        raise GroundingError(
            "Cambrian-1's SigLIP and ConvNeXt are timm models; install timm (pip install "
            "'attend-and-segment[families]')"
        ) from error
    try:
        model = timm.create_model(
            body["architecture"], pretrained=False, num_classes=0, global_pool="", **body["model_args"]
        )
    except (RuntimeError, TypeError) as error:
        raise GroundingError(
            f"timm {timm.__version__} has no {body['architecture']!r} with {body['model_args']}: {error}"
        ) from error
    model.head = nn.Identity()
    return model
