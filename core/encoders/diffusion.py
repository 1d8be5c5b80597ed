"""DiffLMM's visual encoder: one noised U-Net step of a latent diffusion model, beside CLIP."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from core.encoders.diffusion_config import DiffusionVisionConfig
from core.encoders.features import encoder_only, keep_up_to, latents, noised, seeded_maps
from core.encoders.frozen import FrozenEncoder, PositionalEncoding, as_tokens, to_grid_size
from core.encoders.released_head import ReleasedHead


class ImplicitCaptioner(nn.Module):
    """CLIP's patch features, through an MLP, in place of a caption's embedding: [b, h, w, c] -> [b, k, c_text]."""

    def __init__(self, config: DiffusionVisionConfig):
        super().__init__()
        width, side = config.unet_config["cross_attention_dim"], config.image_size // config.patch_size
        self.linear_1 = nn.Linear(config.clip_config.hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)
        self.positions = (
            PositionalEncoding(side, side, width, std=config.initializer_range) if config.caption_positions else None
        )

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b k d"]:
        words = self.linear_2(self.act(self.linear_1(features)))
        if self.positions is not None:
            words = self.positions(words)
        return words.flatten(1, 2)


class DiffusionVisionModel(FrozenEncoder):
    """pixel_values [b, 3, H, W] -> features [b, k, c], k = h w cells in row-major order.

    V = concat(V_SD, V_CLIP) + PE. The VAE, the U-Net (cut after the block that is used) and CLIP are frozen; the
    implicit captioner and PE learn, with gradients flowing through the U-Net. In a `LlavaConfig` give
    vision_feature_layer=-1 and vision_feature_select_strategy="full", or take `core.encoders.llava.llava_config`.

    The grid is H / patch_size by W / patch_size whatever block is used: features of another resolution are resampled to
    it (the paper does not say how blocks 1, 3 and 4 of Table 6 were brought to 24 x 24). H and W may differ, and may
    differ from the configuration's image_size; CLIP's and our positional encodings are then interpolated.

    Source: paper section 3.3, eq. 4. The reference leaves the noise unseeded; here it depends on the seed only.
    """

    config_class = DiffusionVisionConfig
    base_model_prefix = "diffusion_vision"
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"unet\.(up_blocks|conv_norm_out|conv_out)\.",
        r"vae\.(decoder|post_quant_conv)\.",
    ]
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer"]  # noqa: RUF012

    def __init__(self, config: DiffusionVisionConfig):
        super().__init__(config)
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.vae = encoder_only(AutoencoderKL.from_config(config.vae_config))
        self.unet = keep_up_to(UNet2DConditionModel.from_config(config.unet_config), config.up_block)
        self.clip = CLIPVisionModel._from_config(config.clip_config) if config.uses_clip else None
        text_width = config.unet_config["cross_attention_dim"]
        self.captioner = ImplicitCaptioner(config) if config.implicit_captioner else None
        empty = None if config.implicit_captioner else torch.zeros(config.text_length, text_width)
        self.register_buffer("empty_text", empty)
        side = config.image_size // config.patch_size
        self.positions = self.head = None
        if config.released_width is not None:
            self.head = ReleasedHead(config)
        if config.positional_encoding:
            self.positions = PositionalEncoding(side, side, config.hidden_size, std=config.initializer_range)
        self._scheduler: Any = None
        self.post_init()
        self.train(self.training)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.empty_text is not None:
            init.zeros_(self.empty_text)

    def frozen_parts(self) -> list[nn.Module]:
        """VAE, U-Net and CLIP."""
        return [part for part in (self.vae, self.unet, self.clip) if part is not None]

    @property
    def scheduler(self):
        """diffusers' DDIMScheduler of the configuration."""
        if self._scheduler is None:
            from diffusers import DDIMScheduler

            with torch.device("cpu"):
                self._scheduler = DDIMScheduler.from_config(self.config.scheduler_config)
        return self._scheduler

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **unused: Any) -> BaseModelOutputWithPooling:
        """Features as `hidden_states[-1]` and `last_hidden_state`, [b, k, c].

        Args:
            pixel_values: [b, 3, H, W], normalised with the configuration's image_mean and image_std.
            unused: the options that LLaVA passes to any tower.

        Raises:
            GroundingError: another shape, or smaller than a cell.
        """
        size, unit = self.grid(pixel_values), self.unit_pixels(pixel_values)
        clip = None if self.clip is None else self._clip_features(unit, size)
        if self.captioner is not None:
            condition = self.captioner(clip)
        else:
            condition = self.empty_text.to(self.dtype).expand(len(unit), -1, -1)
        diffusion = self._diffusion_features(unit, condition)
        features = to_grid_size(diffusion, size).permute(0, 2, 3, 1)
        if self.head is not None:
            features = self.head(features, clip)
        elif self.config.concat_clip:
            features = torch.cat([features, clip.to(features.dtype)], dim=-1)
        if self.positions is not None:
            features = self.positions(features)
        return as_tokens(features)

    @torch.no_grad()
    def _clip_features(self, unit: Float[Tensor, "b 3 H W"], size: tuple[int, int]) -> Float[Tensor, "b h w c"]:
        """V_CLIP: patch features of one hidden layer, without the class token."""
        config = self.config
        cell, native = self.clip.config.patch_size, self.clip.config.image_size
        pixels_size = (size[0] * cell, size[1] * cell)
        pixels = self.branch_pixels(unit, size=pixels_size, mean=config.clip_mean, std=config.clip_std)
        hidden = self.clip(
            pixels, output_hidden_states=True, interpolate_pos_encoding=pixels_size != (native, native)
        ).hidden_states[config.clip_layer]
        return hidden[:, 1:].unflatten(1, size)

    def _diffusion_features(
        self, unit: Float[Tensor, "b 3 H W"], condition: Float[Tensor, "b s d"]
    ) -> Float[Tensor, "b c h w"]:
        """V_SD: the up block's output for one noised step, averaged over the configuration's noise maps."""
        config, total = self.config, None
        pixels = (2 * unit - 1).to(self.dtype)
        for noise, sampling in seeded_maps(self._latent_shape(pixels), seed=config.seed, count=config.noises):
            with torch.no_grad():
                clean = latents(self.vae, pixels, sampling if config.latents == "sample" else None)
                noisy = noised(clean, noise, config.noise_step, self.scheduler)
            with nullcontext() if self.captioner is not None else torch.no_grad():
                features = self.unet(noisy, config.noise_step, encoder_hidden_states=condition).sample
            total = features if total is None else total + features
        return total / config.noises if config.noises > 1 else total

    def _latent_shape(self, pixels: Tensor) -> tuple[int, int, int]:
        """(c, h, w) of the latents: the VAE halves (rounding down) once per level but the last."""
        halvings = len(self.vae.config.block_out_channels) - 1
        return (self.vae.config.latent_channels, *(int(side) >> halvings for side in pixels.shape[-2:]))

    @classmethod
    def from_parts(
        cls,
        diffusion: str | Path,
        clip: str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> DiffusionVisionModel:
        """DiffLMM's encoder from published parts; what learns has new random weights.

        Args:
            diffusion: directory or hub id of a latent diffusion model in diffusers' layout (vae, unet, scheduler and,
                without the implicit captioner, tokenizer and text_encoder), such as SD-1.5's.
            clip: directory or hub id of a CLIP; its vision tower is taken. Not needed without captioner and concat.
            dtype: of all weights.
            options: fields of `DiffusionVisionConfig`.

        Raises:
            GroundingError: a part is missing or has no weights.
        """
        from core.encoders.parts import load_parts

        parts = load_parts(diffusion, clip, dtype=dtype, **options)
        model = cls(parts.config).to(dtype)
        for name, weights in parts.weights.items():
            wanted = getattr(model, name).state_dict()
            getattr(model, name).load_state_dict({key: weights[key] for key in wanted})
        if parts.empty_text is not None:
            model.empty_text.copy_(parts.empty_text)
        return model.eval()
