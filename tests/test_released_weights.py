"""Published DiffLMM weights: a tiny checkpoint in their layout, against a plainly written forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_diffusion import CLIP, livelier, tiny_diffusion, tiny_tower
from tiny_models import _llama, llama_tokenizer
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear

from core import load_lmm
from core.encoders import register_encoders
from core.encoders.normalisation import CLIP_MEAN, CLIP_STD
from core.errors import GroundingError

WIDTH, TEXT, SD = 32, 12, 32  # of the language model, the cross-attention, the second up block
SETTINGS = {
    "mm_projector_type": "SDCLIPBlock",
    "mm_vision_select_layer": 1,
    "mm_vision_sd_timestep": 100,
    "mm_vision_sd_ensemble_size": 1,
    "mm_vision_sd_implicit_caption": True,
    "mm_vision_sd_concat_clip": True,
    "mm_vision_sd_pe": 16,
    "mm_vision_resolution": 64,
    "image_aspect_ratio": "pad",
}
LORA = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Directories: the published one, and the language model, diffusion model and CLIP beneath it."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("published")
    generator = torch.Generator().manual_seed(11)

    def random(*shape, scale=0.3):
        return torch.randn(shape, generator=generator) * scale

    tokenizer = llama_tokenizer()  # its last token, the image's, is unknown to the language model
    tokenizer.save_pretrained(root / "vicuna")
    text = {key: value for key, value in _llama(len(tokenizer) - 1).items() if key != "model_type"}
    livelier(LlamaForCausalLM(LlamaConfig(**text))).save_pretrained(root / "vicuna")
    shapes = {
        "clip_projector.0": (TEXT, CLIP["hidden_size"]),
        "clip_projector.2": (TEXT, TEXT),
        "sd_proj_layer.0": (WIDTH // 4, SD, 1, 1),
        "linear.0": (WIDTH, WIDTH // 4 + CLIP["hidden_size"]),
        "linear.2": (WIDTH, WIDTH),
    }
    projector = {f"{name}.weight": random(*shape) for name, shape in shapes.items()}
    projector |= {f"{name}.bias": random(shape[0]) for name, shape in shapes.items()}
    projector |= {"sd_norm_layer.weight": 1 + random(SD), "sd_norm_layer.bias": random(SD)}
    projector |= {"clip_pe": random(16, TEXT, scale=1.0), "vt_pe": random(16, WIDTH, scale=1.0)}
    place = root / "difflmm"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(SETTINGS))
    prefix = "base_model.model.model."
    torch.save(
        {f"{prefix}mm_projector.{key}": value for key, value in projector.items()}, place / "non_lora_trainables.bin"
    )
    sizes = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 64)}
    adapter = {}
    for layer in range(2):
        for name in LORA:
            rows, columns = sizes[name]
            adapter[f"{prefix}layers.{layer}.{name}.lora_A.weight"] = random(2, columns)
            adapter[f"{prefix}layers.{layer}.{name}.lora_B.weight"] = random(rows, 2)
    save_file(adapter, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": 2,
                "lora_alpha": 4,
                "target_modules": [name.split(".")[1] for name in LORA],
                "bias": "none",
            }
        )
    )
    parts = {
        "language_model": root / "vicuna",
        "diffusion": tiny_diffusion(root / "sd"),
        "clip": tiny_tower(root / "clip"),
    }
    return place, parts, projector, adapter


@pytest.fixture(scope="module")
def converted(published):
    from core.encoders.released import load_released

    place, parts, _, _ = published
    return load_released(place, **parts, dtype=torch.float32)


@torch.no_grad()
def plain_visual_tokens(published, pixels, seed=0):
    """The published forward pass, written out: pixels as its processor gives them -> LLM tokens [b, 16, 32]."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionModel

    _, parts, w, _ = published
    vae = AutoencoderKL.from_pretrained(parts["diffusion"], subfolder="vae").eval()
    unet = UNet2DConditionModel.from_pretrained(parts["diffusion"], subfolder="unet").eval()
    scheduler = DDIMScheduler.from_pretrained(parts["diffusion"], subfolder="scheduler")
    clip = CLIPVisionModel.from_pretrained(parts["clip"]).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    small = interpolate(pixels, size=(56, 56), mode="bilinear", align_corners=False)
    z = clip((small * 0.5 + 0.5 - mean) / std, output_hidden_states=True).hidden_states[-2][:, 1:]
    words = linear(z, w["clip_projector.0.weight"], w["clip_projector.0.bias"])
    words = linear(gelu(words), w["clip_projector.2.weight"], w["clip_projector.2.bias"]) + w["clip_pe"]
    posterior = vae.encode(pixels).latent_dist
    generator = torch.Generator().manual_seed(seed)
    noise, sampling = (torch.randn(posterior.mean.shape[1:], generator=generator) for _ in range(2))
    latent = (posterior.mean + posterior.std * sampling) * vae.config.scaling_factor
    noisy = scheduler.add_noise(latent, noise.expand_as(latent), torch.tensor([100]))
    taken = []
    unet.up_blocks[1].register_forward_hook(lambda module, given, out: taken.append(out))
    unet(noisy, 100, encoder_hidden_states=words)
    y = layer_norm(taken[0].permute(0, 2, 3, 1), (SD,), w["sd_norm_layer.weight"], w["sd_norm_layer.bias"])
    y = gelu(conv2d(y.permute(0, 3, 1, 2), w["sd_proj_layer.0.weight"], w["sd_proj_layer.0.bias"]))
    y = torch.cat([y.flatten(2).transpose(1, 2), z], dim=-1)
    y = linear(gelu(linear(y, w["linear.0.weight"], w["linear.0.bias"])), w["linear.2.weight"], w["linear.2.bias"])
    return y + w["vt_pe"]


def merged_by_hand(published):
    """The base language model with W + alpha / r * B A."""
    from transformers import LlamaForCausalLM

    _, parts, _, adapter = published
    base = LlamaForCausalLM.from_pretrained(parts["language_model"]).eval()
    for layer in range(2):
        for name in LORA:
            stem = f"base_model.model.model.layers.{layer}.{name}"
            weight = base.get_submodule(f"model.layers.{layer}.{name}").weight
            weight.data += 2.0 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
    return base


def test_visual_tokens_and_logits_equal_the_plain_forward_pass(published, converted, pictures):
    model, processor = converted
    inputs = processor(
        text="USER: <image>\nDescribe the image. ASSISTANT:", images=pictures["landscape"], return_tensors="pt"
    )
    expected = plain_visual_tokens(published, inputs["pixel_values"])
    with torch.no_grad():
        found = torch.stack(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
        logits = model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    base = merged_by_hand(published)
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeddings = base.get_input_embeddings()(ids.clamp(max=base.config.vocab_size - 1))
        embeddings[ids == model.config.image_token_id] = expected.flatten(0, 1)
        plain = base(inputs_embeds=embeddings).logits
    torch.testing.assert_close(logits[..., : plain.shape[-1]], plain, atol=1e-3, rtol=1e-3)


def test_the_processor_keeps_the_published_normalisation(converted, pictures):
    image_processor = converted[1].image_processor
    assert image_processor.image_mean == pytest.approx(CLIP_MEAN) and image_processor.image_std == pytest.approx(
        CLIP_STD
    )
    assert image_processor.do_pad and image_processor.size["shortest_edge"] == 64
    assert converted[0].config.vision_config.image_mean == [0.5] * 3


def test_the_conversation_is_llavas(converted):
    def turn(role, text, *image):
        return {"role": role, "content": [*image, {"type": "text", "text": text}]}

    first = turn("user", "What is this?", {"type": "image"})
    expected = (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\nWhat is this? ASSISTANT:"
    )
    assert converted[1].apply_chat_template([first], add_generation_prompt=True) == expected
    more = [first, turn("assistant", "A cat."), turn("user", "Sure?")]
    expected += " A cat.</s>USER: Sure? ASSISTANT:"
    assert converted[1].apply_chat_template(more, add_generation_prompt=True) == expected


def test_the_converted_model_is_saved_and_grounds(converted, pictures, tmp_path):
    model, processor = converted
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = load_lmm(tmp_path, device="cpu").generate(pictures["square"], "What is this?", max_new_tokens=3)
    again = load_lmm(tmp_path, device="cpu").replay(pictures["square"], "What is this?", found.token_ids)
    assert found.views[-1].index.shape == (4, 4)
    torch.testing.assert_close(found.attention, again.attention, atol=1e-5, rtol=1e-4)


def test_paper_and_compat_differ_where_they_should(published):
    from core.encoders.diffusion import DiffusionVisionConfig
    from core.encoders.released import compat_options

    paper, compat = DiffusionVisionConfig(), compat_options({}, width=4096)
    changed = {key for key, value in compat.items() if getattr(paper, key) != value}
    assert changed == {"caption_positions", "released_width", "latents", "resize", "positions_std"}
    assert DiffusionVisionConfig(**compat).hidden_size == 4096
    assert DiffusionVisionConfig(**compat).concatenated_size == 2048


def test_what_does_not_fit_is_named(published, tmp_path):
    from core.encoders.diffusion import DiffusionVisionModel
    from core.encoders.released import compat_options, load_projector, load_released, projector_weights

    _, parts, projector, _ = published
    with pytest.raises(GroundingError, match=r"no config\.json"):
        load_released(tmp_path, **parts)
    with pytest.raises(GroundingError, match=r"neither non_lora_trainables\.bin nor mm_projector\.bin"):
        projector_weights(tmp_path)
    torch.save({"model.embed_tokens.weight": torch.zeros(1)}, tmp_path / "mm_projector.bin")
    with pytest.raises(GroundingError, match=r"holds no mm_projector\.\* weights"):
        projector_weights(tmp_path)
    register_encoders()
    encoder = DiffusionVisionModel.from_parts(
        parts["diffusion"], parts["clip"], **compat_options(SETTINGS, width=WIDTH)
    )
    with pytest.raises(GroundingError, match=r"clip_norm_layer.weight has no place"):
        load_projector(encoder, projector | {"clip_norm_layer.weight": torch.ones(16)})
    with pytest.raises(GroundingError, match=r"vt_pe has shape \[9, 32\]"):
        load_projector(encoder, projector | {"vt_pe": torch.zeros(9, 32)})
    with pytest.raises(GroundingError, match=r"nothing for head\.linear_2\.bias"):
        load_projector(encoder, {key: value for key, value in projector.items() if key != "linear.2.bias"})
    load_projector(encoder, projector)
    assert torch.equal(encoder.positions.weight.flatten(0, 1), projector["vt_pe"])
