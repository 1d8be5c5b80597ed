"""Cambrian-1 as a transformers model: encoders, aggregator and language model."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from core.cambrian.aggregator import VisionSampler, resampled, windows_mask, windows_of
from core.cambrian.configuration import CambrianConfig
from core.cambrian.geometry import kept
from core.cambrian.language import CambrianTextModel
from core.cambrian.towers import Tower
from core.errors import GroundingError


class CambrianPreTrainedModel(PreTrainedModel):
    """What the model with and without its head share."""

    config_class = CambrianConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CambrianDecoderLayer", "Tower"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in ("vision_query", "image_newline"):
            if isinstance(value := getattr(module, name, None), nn.Parameter):
                init.normal_(value, std=value.shape[-1] ** -0.5)


class CambrianModel(CambrianPreTrainedModel):
    """Everything but the head that says words.

    Source: Cambrian-1 (2406.16860), sections 3.1 and 3.2, and its published code's way of inference: padding is taken
    off the grid, and every row of cells ends in a newline.
    """

    def __init__(self, config: CambrianConfig):
        super().__init__(config)
        if not config.towers:
            raise GroundingError("a Cambrian-1 needs its towers; core.cambrian.released reads the published ones")
        width, hidden = config.width, config.text_config.hidden_size
        self.towers = nn.ModuleList(Tower(given) for given in config.towers)
        for number, given in enumerate(config.towers):
            layers = (nn.Linear(given["width"], width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
            self.add_module(f"mm_projector_aux_{number}", nn.Sequential(*layers))
        for group, side in enumerate(config.query_sides):
            self.add_module(f"vision_sampler_{group}", self._sampler(width, side, config.depth))
        self.vision_query = nn.Parameter(torch.zeros(len(config.query_sides), width))
        self.mm_projector = nn.Sequential(
            nn.Linear(width * len(config.query_sides), hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.image_newline = nn.Parameter(torch.zeros(hidden))
        samplers = {layer: self._sampler(hidden, config.side, 1) for layer in config.sampled_layers}
        self.language_model = CambrianTextModel(config.text_config, samplers)
        self.post_init()

    def _sampler(self, query_width: int, side: int, depth: int) -> VisionSampler:
        windows = [given["side"] // side for given in self.config.towers]
        return VisionSampler(query_width=query_width, width=self.config.width, windows=windows, depth=depth)

    def get_input_embeddings(self) -> nn.Module:
        """Llama's table of words."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another table of words."""
        self.language_model.embed_tokens = value

    def look(self, pixel_values: Float[Tensor, "b p"], image_sizes: Int[Tensor, "b 2"]) -> dict[str, Any]:
        """What is seen of pictures.

        Args:
            pixel_values: of each picture what all towers see of it, one square after the other, flat.
            image_sizes: (H, W) of the originals.

        Returns:
            `tokens` [slots, d] of all pictures, row by row and each row with its newline; `is_cell` bool [slots]; and
            of the cells alone, for the samplers inside the language model, `context` [cells, 1, c], `features`, of
            each tower [cells, n, c], and `masks`, bool [cells, n].
        """
        side, sizes = self.config.side, [tuple(size) for size in image_sizes.tolist()]
        device = pixel_values.device  # towers may stand on several
        grids = [self._projected(number, each).to(device) for number, each in enumerate(self._squares(pixel_values))]
        context = grids[0].mean(1)
        cells = self.mm_projector(torch.cat(self._sampled(grids, context, sizes), -1)).to(device)
        inside = kept(sizes, side, device)
        slots = torch.cat([cells, self.image_newline.to(device).expand(*cells.shape[:2], 1, -1)], 2)
        taken = torch.cat([inside, inside.any(2, keepdim=True)], 2)
        column = torch.arange(side + 1, device=device).expand_as(taken)
        return {
            "tokens": slots[taken],
            "is_cell": (column < side)[taken],
            "context": repeat(context, "b c -> b h w 1 c", h=side, w=side)[inside],
            "features": [windows_of(grid, side)[inside] for grid in grids],
            "masks": [self._mask(number, sizes, side, device)[inside] for number in range(len(grids))],
        }

    def _squares(self, pixel_values: Tensor) -> list[Tensor]:
        """[b, 3, size, size] for each tower."""
        sizes = [given["size"] for given in self.config.towers]
        expected = sum(3 * size * size for size in sizes)
        if pixel_values.ndim != 2 or pixel_values.shape[1] != expected:
            raise GroundingError(
                f"pixel_values have shape [b, {expected}] for towers that see {sizes} pixels a side, got "
                f"{list(pixel_values.shape)}; let the model's own processor make them"
            )
        parts = pixel_values.split([3 * size * size for size in sizes], dim=1)
        return [part.unflatten(1, (3, size, size)) for part, size in zip(parts, sizes, strict=True)]

    def _projected(self, number: int, pictures: Tensor) -> Tensor:
        features = self.towers[number](pictures)
        return self.get_submodule(f"mm_projector_aux_{number}")(features.to(self.image_newline.dtype))

    def _sampled(self, grids: list[Tensor], context: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Of each group of queries [b, side, side, c]."""
        groups = []
        for group, side in enumerate(self.config.query_sides):
            shape = {"b": len(sizes), "h": side, "w": side}
            found = self.get_submodule(f"vision_sampler_{group}")(
                repeat(self.vision_query[group].to(context.device), "c -> (b h w) 1 c", **shape),
                repeat(context, "b c -> (b h w) 1 c", h=side, w=side),
                [windows_of(grid, side).flatten(0, 2) for grid in grids],
                [self._mask(number, sizes, side, context.device).flatten(0, 2) for number in range(len(grids))],
            )
            groups.append(resampled(rearrange(found, "(b h w) 1 c -> b h w c", **shape), self.config.side))
        return groups

    def _mask(self, number: int, sizes: list[tuple[int, int]], side: int, device: torch.device) -> Tensor:
        """bool [b, h, w, n]: which of a tower's features the cells may look at."""
        return windows_mask(kept(sizes, self.config.towers[number]["side"], device), side)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Llama's output; see `CambrianForConditionalGeneration.forward`."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        vision = None
        if pixel_values is not None:
            if input_ids is None or image_sizes is None:
                raise GroundingError(
                    "a picture needs input_ids with its slots and image_sizes; give what the processor made"
                )
            vision = self.look(pixel_values, image_sizes)
            tokens, is_cell = vision.pop("tokens"), vision.pop("is_cell")
            slots = input_ids == self.config.image_token_id
            if int(slots.sum()) != len(tokens):
                raise GroundingError(
                    f"the prompts hold {int(slots.sum())} visual slots for {len(tokens)} visual tokens; let the "
                    "model's own processor expand the placeholder"
                )
            inputs_embeds = inputs_embeds.masked_scatter(slots[..., None], tokens.to(inputs_embeds))
            vision["where"] = slots.masked_scatter(slots, is_cell.to(slots.device))
        return self.language_model(attention_mask=attention_mask, inputs_embeds=inputs_embeds, vision=vision, **kwargs)


class CambrianForConditionalGeneration(CambrianPreTrainedModel, GenerationMixin):
    """Cambrian-1: pictures and words in, words out."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CambrianConfig):
        super().__init__(config)
        self.model = CambrianModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Llama's table of words."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another table of words."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head that says words."""
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Scores of the next words.

        Args:
            input_ids: int64 [b, s], with one image token for each visual slot.
            pixel_values, image_sizes: as for `CambrianModel.look`; with the prompt only.
            attention_mask, position_ids, inputs_embeds, kwargs: as for `LlamaModel`.
            labels: int64 [b, s], -100 where nothing is to be learnt.
            logits_to_keep: number of last positions, or their indices; 0 for all.

        Raises:
            GroundingError: pictures that do not fit the slots.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, wanted])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, **{k: v for k, v in outputs.items() if k != "last_hidden_state"}
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The pictures go with the prompt only: after it they are in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_sizes"] = None
        return inputs
