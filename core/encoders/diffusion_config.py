"""Configuration of the diffusion encoder; the defaults are Stable Diffusion 1.5 with CLIP ViT-L/14-336."""

from __future__ import annotations

from typing import Any, no_type_check

from transformers import CLIPVisionConfig, PreTrainedConfig

from core.encoders.frozen import check_picture
from core.encoders.normalisation import CLIP_MEAN, CLIP_STD
from core.errors import GroundingError

LATENTS = ("mean", "sample")
SD15_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SD15_UNET = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
SD15_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


@no_type_check  # transformers gives it an __init__ with further keywords
class DiffusionVisionConfig(PreTrainedConfig):
    """What `DiffusionVisionModel` is made of.

    Fields:
        vae_config, unet_config, scheduler_config: diffusers' configurations of AutoencoderKL, UNet2DConditionModel and
            DDIMScheduler.
        clip_config: transformers' CLIPVisionConfig; None without implicit_captioner and concat_clip.
        noise_step: step of the one noising, 0 to the scheduler's last (paper: 100).
        up_block: up block whose output is taken, counted from 1 as in the paper (paper: 2).
        implicit_captioner: CLIP features through an MLP condition the U-Net; else the empty text's embedding does.
        concat_clip: CLIP's features stand beside the U-Net's.
        positional_encoding: a learnable vector per cell is added (eq. 4).
        clip_layer: index into CLIP's hidden states (paper: -2, the penultimate).
        latents: "mean" of the VAE's posterior, or a seeded "sample" of it.
        seed, noises: seed of the noise; number of noise maps whose features are averaged.
        image_size, patch_size: pixels; the grid is image_size / patch_size cells a side.
        image_mean, image_std: how `pixel_values` are normalised; the default is the range [-1, 1].
        clip_mean, clip_std, resize: what CLIP gets; resize is "bicubic" (antialiased) or "bilinear".
        text_length: tokens of the empty text's embedding.
        positions_std: of the positional encodings' start. The paper gives none; the released code has 1, but adds them
            behind its projector, where eq. 4 adds them to the features themselves, which 0.02 leaves as they are.
        caption_positions, released_width: layout of the published weights, see `core.encoders.released`.
    """

    model_type = "diffusion_vision"
    base_config_key = "vision_config"
    sub_configs = {"clip_config": CLIPVisionConfig}  # noqa: RUF012

    vae_config: dict[str, Any] | None = None
    unet_config: dict[str, Any] | None = None
    scheduler_config: dict[str, Any] | None = None
    clip_config: Any = None
    noise_step: int = 100
    up_block: int = 2
    implicit_captioner: bool = True
    concat_clip: bool = True
    positional_encoding: bool = True
    clip_layer: int = -2
    latents: str = "mean"
    seed: int = 0
    noises: int = 1
    image_size: int = 384
    patch_size: int = 16
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    clip_mean: list[float] | tuple[float, ...] = CLIP_MEAN
    clip_std: list[float] | tuple[float, ...] = CLIP_STD
    resize: str = "bicubic"
    text_length: int = 77
    caption_positions: bool = False
    released_width: int | None = None
    positions_std: float = 0.02
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.vae_config = dict(SD15_VAE) if self.vae_config is None else dict(self.vae_config)
        self.unet_config = dict(SD15_UNET) if self.unet_config is None else dict(self.unet_config)
        self.scheduler_config = dict(SD15_SCHEDULER) if self.scheduler_config is None else dict(self.scheduler_config)
        if not self.uses_clip:
            self.clip_config = None  # transformers would look for the model of this part
        elif self.clip_config is None:
            self.clip_config = dict(CLIP_L_336)
        if isinstance(self.clip_config, dict):
            given = {key: value for key, value in self.clip_config.items() if key != "model_type"}
            self.clip_config = CLIPVisionConfig(**given)
        for name in ("image_mean", "image_std", "clip_mean", "clip_std"):
            setattr(self, name, list(getattr(self, name)))
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        check_picture(self)
        steps = int(self.scheduler_config.get("num_train_timesteps", 1000))
        if not 0 <= self.noise_step < steps:
            raise GroundingError(f"noise_step is 0 to {steps - 1} for this scheduler, got {self.noise_step}")
        blocks = len(self.unet_channels)
        if not 1 <= self.up_block <= blocks:
            raise GroundingError(f"up_block is counted from 1 to {blocks} in this U-Net, got {self.up_block}")
        if self.latents not in LATENTS:
            raise GroundingError(f"unknown latents {self.latents!r}; use one of {', '.join(LATENTS)}")
        if self.noises < 1:
            raise GroundingError(f"noises is the number of noise maps averaged, at least 1, got {self.noises}")
        if not isinstance(self.unet_config.get("cross_attention_dim"), int):
            raise GroundingError(
                "the U-Net must be conditioned by cross-attention of one width, but cross_attention_dim is "
                f"{self.unet_config.get('cross_attention_dim')!r}; use a text-to-image model such as SD-1.5"
            )

    @property
    def unet_channels(self) -> list[int]:
        """Output channels of the U-Net's up blocks, in their order."""
        return list(reversed(self.unet_config["block_out_channels"]))

    @property
    def uses_clip(self) -> bool:
        """Whether there is a CLIP at all."""
        return self.implicit_captioner or self.concat_clip

    @property
    def diffusion_size(self) -> int:
        """Channels of V_SD as it is concatenated."""
        return self.unet_channels[self.up_block - 1] if self.released_width is None else self.released_width // 4

    @property
    def concatenated_size(self) -> int:
        """Channels of concat(V_SD, V_CLIP)."""
        return self.diffusion_size + (self.clip_config.hidden_size if self.concat_clip else 0)

    @property
    def hidden_size(self) -> int:
        """Channels of the features that come out."""
        return self.concatenated_size if self.released_width is None else self.released_width
