"""DiffLMM's visual encoder: one noised U-Net step of a latent diffusion model, beside CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from core.encoders.diffusion_config import DiffusionVisionConfig
from core.encoders.features import encoder_only, fresh_maps, keep_up_to, latents, noised, seeded_maps
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
            PositionalEncoding(side, side, width, std=config.positions_std) if config.caption_positions else None
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

    Noise depends on the configuration's seed only. With `fresh_noise`, which `core.training` sets by its recipe, every
    picture gets maps of its own in training mode, from torch's random stream; answers stay seeded.

    Source: paper section 3.3, eq. 4. The released code draws unseeded noise in training and for every answer.
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
            self.positions = PositionalEncoding(side, side, config.hidden_size, std=config.positions_std)
        self.fresh_noise = False
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

    @torch.no_grad()
    def encode_frozen(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """What does not depend on the captioner and PE.

        Returns:
            "clip": V_CLIP [b, h, w, c], where CLIP is used; with the captioner "noisy": the noised latents [b, n, c, h,
            w] of n noise maps, without it "diffusion": V_SD [b, h, w, c].
        """
        size, unit = self.grid(pixel_values), self.unit_pixels(pixel_values)
        frozen = {} if self.clip is None else {"clip": self._clip_features(unit, size)}
        noisy = self._noisy_latents((2 * unit - 1).to(self.dtype))
        if self.captioner is not None:
            return {**frozen, "noisy": noisy}
        condition = self.empty_text.to(self.dtype).expand(len(unit), -1, -1)
        return {**frozen, "diffusion": self._diffusion_features(noisy, condition, size)}

    @torch.no_grad()
    def encode_clip(self, pixel_values: Tensor) -> Float[Tensor, "b h w c"]:
        """V_CLIP alone; `encode_frozen` gives it with the rest."""
        return self._clip_features(self.unit_pixels(pixel_values), self.grid(pixel_values))

    def from_frozen(self, frozen: dict[str, Tensor]) -> BaseModelOutputWithPooling:
        """Captioner and U-Net, if there is a captioner; then concat and PE (eq. 4)."""
        clip = frozen.get("clip")
        if self.captioner is not None:
            features = self._diffusion_features(frozen["noisy"], self.captioner(clip), tuple(clip.shape[1:3]))
        else:
            features = frozen["diffusion"]
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

    def _noisy_latents(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n c h w"]:
        """Latents of pixels in [-1, 1] at the noise step, with each of the configuration's noise maps, or new ones."""
        config, maps, shape = self.config, [], self._latent_shape(pixels)
        if self.fresh_noise and self.training:
            drawn = fresh_maps((len(pixels), *shape), count=config.noises, device=pixels.device)
        else:
            drawn = seeded_maps(shape, seed=config.seed, count=config.noises)
        for noise, sampling in drawn:
            clean = latents(self.vae, pixels, sampling if config.latents == "sample" else None)
            maps.append(noised(clean, noise, config.noise_step, self.scheduler))
        return torch.stack(maps, dim=1)

    def _diffusion_features(
        self, noisy: Float[Tensor, "b n c h w"], condition: Float[Tensor, "b s d"], size: tuple[int, int]
    ) -> Float[Tensor, "b h2 w2 c2"]:
        """V_SD on the grid of `size`: the up block's output, averaged over the noise maps."""
        outputs = [
            self.unet(one, self.config.noise_step, encoder_hidden_states=condition).sample for one in noisy.unbind(1)
        ]
        mean = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
        return to_grid_size(mean, size).permute(0, 2, 3, 1)

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
