"""What a Cambrian-1 is made of."""

from __future__ import annotations

from typing import Any, no_type_check

from transformers import LlamaConfig, PreTrainedConfig

from core.errors import GroundingError

TOWER = {"body", "layer", "skip", "stages", "size", "side", "width", "mean", "std", "fill"}


@no_type_check  # transformers gives it an __init__ with further keywords
class CambrianConfig(PreTrainedConfig):
    """What `CambrianForConditionalGeneration` is made of; the defaults are Cambrian-1 8B's.

    Fields:
        text_config: the language model's, a `LlamaConfig`.
        towers: for each encoder a dict, see `check_tower`; the first one's mean feature is the samplers' context.
        image_token_id: the id that stands at every visual position, newlines among them.
        side: cells along one side of the grid that the language model sees.
        query_sides: for each group of queries the cells along one side of its grid.
        width: channels of the aggregator.
        depth: layers of each sampler before the language model.
        samplers: number of samplers inside the language model; 0 for none.
        start, stride: the samplers stand behind the layers start, start + stride, ... (0-based).
    """

    model_type = "cambrian"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    towers: list[dict[str, Any]] | None = None
    image_token_id: int = 128256
    side: int = 24
    query_sides: list[int] | tuple[int, ...] = (24,)
    width: int = 1024
    depth: int = 3
    samplers: int = 10
    start: int = 0
    stride: int = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            given = {key: value for key, value in (self.text_config or {}).items() if key != "model_type"}
            self.text_config = LlamaConfig(**given)
        self.towers = [dict(tower) for tower in self.towers or []]
        self.query_sides = list(self.query_sides)
        super().__post_init__(**kwargs)
        for number, tower in enumerate(self.towers):
            check_tower(tower, number, [self.side, *self.query_sides])
        last = self.start + (self.samplers - 1) * self.stride
        if self.samplers and last >= self.text_config.num_hidden_layers:
            raise GroundingError(
                f"{self.samplers} samplers from layer {self.start} on in steps of {self.stride} end at layer {last}, "
                f"but the language model has {self.text_config.num_hidden_layers} layers"
            )

    @property
    def sampled_layers(self) -> list[int]:
        """Layers (0-based) behind which the cells look at the picture again."""
        return [self.start + number * self.stride for number in range(self.samplers)]


@no_type_check
class ReleasedConfig(LlamaConfig):
    """config.json of the published layout: a Llama's, with what belongs to the picture beside it."""

    model_type = "cambrian_llama"


def check_tower(tower: dict[str, Any], number: int, sides: list[int]) -> None:
    """Refuses an encoder's description that lacks a field, or whose features do not fill the queries' grids.

    A tower has `body` (a transformers configuration as a dict, or timm's `architecture` and `model_args`), `size`
    (pixels along a side of the square it sees), `side` (features along a side of its grid, resampled), `width` (its
    channels), `mean`, `std` (its normalisation) and `fill` (red, green, blue of the padding, 0..255). Of a transformers
    encoder `layer` is an index into its hidden states (None for its last output after the final norm) and `skip` the
    tokens in front of the patches; of a timm one `stages` says whether all its stages are taken or its last output.

    Raises:
        GroundingError: as said.
    """
    if set(tower) != TOWER:
        raise GroundingError(f"tower {number} has the fields {sorted(tower)}, but needs {sorted(TOWER)}")
    for side in sides:
        if tower["side"] % side:
            raise GroundingError(
                f"tower {number} has {tower['side']} x {tower['side']} features, which are no whole number for each "
                f"of {side} x {side} cells"
            )
