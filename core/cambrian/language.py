"""Cambrian-1's language model: a Llama whose cells look at the picture again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from core.cambrian.aggregator import VisionSampler


class CambrianDecoderLayer(LlamaDecoderLayer):
    """A layer of Llama's, behind which the picture's cells may look at the encoders' features again."""

    def __init__(self, config: Any, layer_idx: int, sampler: VisionSampler | None):
        super().__init__(config, layer_idx)
        self.sampler = sampler

    def forward(self, hidden_states: Tensor, *args: Any, vision: dict[str, Any] | None = None, **kwargs: Any) -> Tensor:
        """`vision`: what `CambrianModel.look` found, with `where` bool [b, s], the positions of cells."""
        hidden_states = super().forward(hidden_states, *args, **kwargs)
        if self.sampler is None or vision is None:
            return hidden_states
        cells = hidden_states[vision["where"]][:, None]
        seen = self.sampler(cells, vision["context"], vision["features"], vision["masks"])
        hidden_states = hidden_states.clone()
        hidden_states[vision["where"]] = seen[:, 0].to(hidden_states.dtype)
        return hidden_states


class CambrianTextModel(LlamaModel):
    """Llama with samplers behind some of its layers.

    Args:
        config: Llama's.
        samplers: by the layer (0-based) behind which they stand.
    """

    _no_split_modules = ["CambrianDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: Any, samplers: dict[int, VisionSampler]):
        super().__init__(config)
        self.layers = nn.ModuleList(
            CambrianDecoderLayer(config, index, samplers.get(index)) for index in range(config.num_hidden_layers)
        )
        self.post_init()
