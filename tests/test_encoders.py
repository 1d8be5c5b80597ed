"""The visual encoders: parity with a plain diffusers step, what is frozen, each option, and life in LLaVA."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from tiny_diffusion import tiny_diffusion, tiny_tower
from tiny_models import LLAVA_CHAT, _llama, checkpointed, llama_tokenizer
from torch.nn.functional import gelu, interpolate, linear

from core import load_lmm
from core.encoders import register_encoders
from core.encoders.normalisation import CLIP_MEAN, CLIP_STD
from core.errors import GroundingError

SIDE = {"image_size": 64}
PLAIN = SIDE | {"implicit_captioner": False, "concat_clip": False, "positional_encoding": False}


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_encoders()


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    towers = {kind: tiny_tower(root / kind, kind) for kind in ("clip", "dinov2", "convnext")}
    return {"diffusion": tiny_diffusion(root / "diffusion")} | towers


@pytest.fixture(scope="module")
def build(directories):
    """Encoders from the same parts; what learns is the same, too, for the same options."""
    from core.encoders.diffusion import DiffusionVisionModel

    def encoder(**options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = DiffusionVisionModel.from_parts(directories["diffusion"], directories["clip"], **SIDE | options)
        for name, weight in model.named_parameters():
            if name.startswith("captioner") and weight.ndim > 1:
                weight.data.copy_(torch.linspace(-1, 1, weight.numel()).view(weight.shape).roll(7, 0))
        return model

    return encoder


@pytest.fixture(scope="module")
def difflmm(build):
    """The paper's encoder."""
    return build()


@pytest.fixture(scope="module")
def pixels():
    """Two pictures [2, 3, 64, 64] in [-1, 1]."""
    coarse = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    return interpolate(coarse, size=(64, 64), mode="bicubic").tanh()


def features(model, pixels):
    with torch.no_grad():
        return model(pixels).hidden_states[-1]


class Pipeline:
    """The same step with diffusers and transformers alone, on the whole U-Net, with a hook."""

    def __init__(self, directories):
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

        place = directories["diffusion"]
        self.vae = AutoencoderKL.from_pretrained(place, subfolder="vae").eval()
        self.unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet").eval()
        self.scheduler = DDIMScheduler.from_pretrained(place, subfolder="scheduler")
        self.text = CLIPTextModel.from_pretrained(place / "text_encoder").eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(place / "tokenizer")
        self.clip = CLIPVisionModel.from_pretrained(directories["clip"]).eval()

    @torch.no_grad()
    def __call__(self, pixels, condition, *, step=100, block=1, noise=None):
        taken = []
        hook = self.unet.up_blocks[block].register_forward_hook(lambda module, given, out: taken.append(out))
        z = self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor
        if noise is None:
            noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0))
        noisy = self.scheduler.add_noise(z, noise.repeat(len(z), 1, 1, 1), torch.tensor([step]))
        self.unet(noisy, step, encoder_hidden_states=condition)
        hook.remove()
        return taken[0]

    @torch.no_grad()
    def empty_text(self, batch):
        ids = self.tokenizer("", padding="max_length", max_length=7, return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state.repeat(batch, 1, 1)

    @torch.no_grad()
    def clip_features(self, pixels, side=56):
        picture = interpolate(pixels / 2 + 0.5, (side, side), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return self.clip((picture.clamp(0, 1) - mean) / std, output_hidden_states=True).hidden_states[-2][:, 1:]


@pytest.fixture(scope="module")
def pipeline(directories):
    return Pipeline(directories)


def tokens(feature_map):
    return feature_map.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_every_up_block_equals_the_hooked_full_unet(build, pipeline, pixels, block):
    model = build(**PLAIN, up_block=block)
    whole = pipeline(pixels, pipeline.empty_text(2), block=block - 1)
    side = {1: 2, 2: 4, 3: 8, 4: 8}[block]
    assert whole.shape[-2:] == (side, side)
    if side < 4:
        whole = interpolate(whole, (4, 4), mode="bilinear")
    elif side > 4:
        whole = whole.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    torch.testing.assert_close(features(model, pixels), tokens(whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", [0, 100, 300])
def test_noise_steps_equal_the_pipeline(build, pipeline, pixels, step):
    model = build(**PLAIN, noise_step=step)
    whole = pipeline(pixels, pipeline.empty_text(2), step=step)
    torch.testing.assert_close(features(model, pixels), tokens(whole), atol=1e-5, rtol=1e-5)


def test_equation_4_from_its_parts(difflmm, pipeline, pixels):
    clip = pipeline.clip_features(pixels)
    weights = dict(difflmm.named_parameters())
    words = linear(clip, weights["captioner.linear_1.weight"], weights["captioner.linear_1.bias"])
    words = linear(gelu(words), weights["captioner.linear_2.weight"], weights["captioner.linear_2.bias"]).detach()
    expected = torch.cat([tokens(pipeline(pixels, words)), clip], dim=-1) + weights["positions.weight"].flatten(0, 1)
    found = features(difflmm, pixels)
    assert found.shape == (2, 16, 32 + 16) and difflmm.config.hidden_size == 48
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 9)])
def test_stopping_early_is_the_full_pass_bit_for_bit(pipeline, size):
    from core.encoders.features import keep_up_to

    sample, words = torch.randn(1, 4, *size), torch.randn(1, 5, 12)
    unet, taken = copy.deepcopy(pipeline.unet), []
    hook = unet.up_blocks[1].register_forward_hook(lambda module, given, out: taken.append(out))
    with torch.no_grad():
        unet(sample, 100, encoder_hidden_states=words)
        hook.remove()
        assert torch.equal(keep_up_to(unet, 2)(sample, 100, encoder_hidden_states=words).sample, taken[0])


def test_later_blocks_and_the_decoder_are_not_kept(difflmm, pipeline):
    names = {name.split(".")[2] for name, _ in difflmm.unet.named_parameters(prefix="unet") if ".up_blocks." in name}
    assert names == {"0", "1"}
    kept = sum(weight.numel() for weight in difflmm.unet.parameters())
    later = [*pipeline.unet.up_blocks[2:], pipeline.unet.conv_norm_out, pipeline.unet.conv_out]
    dropped = sum(weight.numel() for part in later for weight in part.parameters())
    assert kept + dropped == sum(weight.numel() for weight in pipeline.unet.parameters())
    assert not any("decoder" in name for name, _ in difflmm.vae.named_parameters())


def test_a_checkpoint_of_the_full_unet_loads(difflmm, pipeline, pixels, tmp_path):
    from safetensors.torch import load_file, save_file

    difflmm.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {f"unet.{name}": value for name, value in pipeline.unet.state_dict().items()}
    state |= {f"vae.{name}": value for name, value in pipeline.vae.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, notes = type(difflmm).from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["unexpected_keys"] and not notes["missing_keys"]
    torch.testing.assert_close(features(loaded, pixels), features(difflmm, pixels), atol=1e-6, rtol=1e-6)


def test_seed_and_batch(build, difflmm, pixels):
    both = features(difflmm, pixels)
    assert torch.equal(both, features(difflmm, pixels))
    torch.testing.assert_close(features(difflmm, pixels[1:]), both[1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(difflmm, pixels.flip(0)).flip(0), both, atol=1e-5, rtol=1e-5)
    other = features(build(seed=1), pixels)
    assert (other - both)[..., :32].abs().max() > 1e-2
    torch.testing.assert_close(other[..., 32:], both[..., 32:])  # CLIP sees no noise


def test_several_noises_are_averaged(build, pipeline, pixels):
    generator, maps = torch.Generator().manual_seed(0), []
    for _ in range(2):
        maps.append(torch.randn(4, 8, 8, generator=generator))
        torch.randn(4, 8, 8, generator=generator)  # the latents' own
    each = [tokens(pipeline(pixels, pipeline.empty_text(2), noise=noise)) for noise in maps]
    assert (each[0] - each[1]).abs().max() > 1e-2
    torch.testing.assert_close(features(build(**PLAIN, noises=2), pixels), sum(each) / 2, atol=1e-5, rtol=1e-5)


def test_sampled_latents_are_seeded_and_differ_from_the_mean(build, pixels):
    mean, sample = build(**PLAIN), build(**PLAIN, latents="sample")
    assert torch.equal(features(sample, pixels), features(sample, pixels))
    assert (features(sample, pixels) - features(mean, pixels)).abs().max() > 1e-3


def test_each_option_changes_exactly_its_own_part(build, difflmm, pixels):
    whole = features(difflmm, pixels)
    without_pe = features(build(positional_encoding=False), pixels)
    torch.testing.assert_close(
        whole - without_pe, difflmm.positions.weight.flatten(0, 1).detach().expand(2, -1, -1), atol=1e-5, rtol=1e-4
    )
    without_clip = build(concat_clip=False, positional_encoding=False)
    torch.testing.assert_close(features(without_clip, pixels), without_pe[..., :32])
    assert without_clip.config.hidden_size == 32 and without_clip.clip is not None
    without_ic = features(build(implicit_captioner=False, positional_encoding=False), pixels)
    torch.testing.assert_close(without_ic[..., 32:], without_pe[..., 32:])
    assert (without_ic - without_pe)[..., :32].abs().max() > 1e-2
    sd_only = build(**PLAIN)
    torch.testing.assert_close(features(sd_only, pixels), without_ic[..., :32])
    assert sd_only.clip is None and not [name for name, weight in sd_only.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_what_learns_moves(build, pixels, checkpointing):
    model = build().train()
    if checkpointing:
        checkpointed(model)
    for part in (model.vae, model.unet, model.clip):
        assert not any(module.training for module in part.modules())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learns, lr=1e-2)
    model(pixels).last_hidden_state[..., :32].square().mean().backward()
    optimiser.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"captioner", "positions"}
    assert {f"captioner.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")} <= moved


def test_checkpointing_gives_the_same_gradients(build, pixels):
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            checkpointed(model)
        model(pixels).last_hidden_state[..., :32].square().mean().backward()
        gradients.append(model.captioner.linear_1.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_bfloat16_is_the_same_up_to_rounding(build, pixels):
    model = build()
    exact = features(model, pixels)
    rounded = features(model.to(torch.bfloat16), pixels)
    assert rounded.dtype == torch.bfloat16
    assert torch.corrcoef(torch.stack([exact.flatten(), rounded.float().flatten()]))[0, 1] > 0.999


def test_other_shapes_than_the_native_square(difflmm, pixels):
    wide = torch.cat([pixels, pixels.flip(-1)], dim=-1)[..., :48, :]
    assert features(difflmm, wide).shape == (2, 3 * 8, 48)
    uneven = torch.nn.functional.pad(wide, (0, 5, 0, 9), value=1.0)
    torch.testing.assert_close(features(difflmm, uneven), features(difflmm, wide))  # whole cells only
    with pytest.raises(GroundingError, match=r"got \[2, 3, 8, 64\]"):
        features(difflmm, pixels[:, :, :8])


def test_the_processors_normalisation_is_undone(build, difflmm, pixels):
    other = build(image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(
        features(other, (pixels / 2 + 0.5 - mean) / std), features(difflmm, pixels), atol=1e-4, rtol=1e-4
    )


def test_round_trip_keeps_everything(difflmm, pixels, tmp_path):
    from transformers import AutoConfig, AutoModel

    difflmm.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert read | {"_name_or_path": ""} == difflmm.config.to_dict()
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {name for name, weight in loaded.named_parameters() if weight.requires_grad} == {
        name for name, weight in difflmm.named_parameters() if weight.requires_grad
    }
    torch.testing.assert_close(features(loaded, pixels), features(difflmm, pixels), atol=1e-6, rtol=1e-6)


def test_round_trip_keeps_the_empty_text(build, pixels, tmp_path):
    model = build(**PLAIN)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.empty_text, model.empty_text) and model.empty_text.abs().max() > 0
    torch.testing.assert_close(features(loaded, pixels), features(model, pixels), atol=1e-6, rtol=1e-6)


def test_without_clip_no_configuration_of_it_is_left(build, pixels, tmp_path, caplog, monkeypatch):
    model = build(implicit_captioner=False, concat_clip=False)
    assert model.config.clip_config is None
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        again.set_attn_implementation("eager")
    assert not caplog.records
    torch.testing.assert_close(features(again, pixels), features(model, pixels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_step": 1000}, "noise_step is 0 to 999"),
        ({"up_block": 0}, "counted from 1 to 4"),
        ({"latents": "mode"}, "mean, sample"),
        ({"image_size": 100}, "not a whole number of cells"),
        ({"resize": "nearest"}, "bicubic, bilinear"),
        ({"noises": 0}, "at least 1"),
        ({"image_mean": [0.5]}, "one value per colour channel"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    from core.encoders.diffusion import DiffusionVisionConfig

    with pytest.raises(GroundingError, match=message):
        DiffusionVisionConfig(**options)


def test_missing_parts_are_named(directories, tmp_path):
    from core.encoders.diffusion import DiffusionVisionModel

    with pytest.raises(GroundingError, match="need a CLIP"):
        DiffusionVisionModel.from_parts(directories["diffusion"], **SIDE)
    with pytest.raises(GroundingError, match="its part 'vae' could not be loaded"):
        DiffusionVisionModel.from_parts(tmp_path, directories["clip"], **SIDE)


def test_the_defaults_are_stable_diffusion_1_5():
    from core.encoders.diffusion import DiffusionVisionConfig, DiffusionVisionModel

    config = DiffusionVisionConfig()
    assert (config.hidden_size, config.image_size // config.patch_size) == (1280 + 1024, 24)
    with torch.device("meta"):
        model = DiffusionVisionModel(config)
    counts = {name: sum(w.numel() for w in part.parameters()) for name, part in model.named_children()}
    assert counts["captioner"] == 1024 * 768 + 768 + 768 * 768 + 768
    assert counts["positions"] == 24 * 24 * 2304
    assert 0.6e9 < counts["unet"] < 859_520_964  # SD-1.5's U-Net without its last two up blocks


@pytest.fixture(scope="module")
def towers(directories):
    from transformers import AutoModel

    return {kind: AutoModel.from_pretrained(directories[kind]).eval() for kind in ("clip", "dinov2", "convnext")}


def test_clip_beside_dinov2_beside_convnext(towers, pixels, tmp_path):
    from transformers import AutoModel

    from core.encoders.combined import combine
    from core.encoders.normalisation import IMAGENET_MEAN, IMAGENET_STD

    model = combine(*towers.values(), image_size=64, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    found = features(model, pixels)
    assert found.shape == (2, 16, 16 + 24 + 20)

    def picture(side, mean, std):
        unit = pixels / 2 + 0.5
        if side != 64:
            unit = interpolate(unit, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        clip = towers["clip"](picture(56, CLIP_MEAN, CLIP_STD), output_hidden_states=True).hidden_states[-2][:, 1:]
        dino = towers["dinov2"](picture(56, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 1:]
        convnext = tokens(towers["convnext"](picture(128, CLIP_MEAN, CLIP_STD)).last_hidden_state)
    torch.testing.assert_close(found, torch.cat([clip, dino, convnext], -1), atol=1e-5, rtol=1e-4)
    assert not [name for name, weight in model.train().named_parameters() if weight.requires_grad]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(features(AutoModel.from_pretrained(tmp_path), pixels), found, atol=1e-6, rtol=1e-6)


def test_combined_encoders_refuse_what_they_do_not_know(towers):
    from transformers import BertConfig

    from core.encoders.combined import CombinedVisionConfig, CombinedVisionModel, branch, combine

    with pytest.raises(GroundingError, match="no rule for a branch of type 'bert'"):
        branch(BertConfig())
    with pytest.raises(GroundingError, match="at least one branch"):
        CombinedVisionModel(CombinedVisionConfig())
    with pytest.raises(GroundingError, match="1 encoders were given with 0 branches"):
        combine(towers["clip"], branches=[])
    with pytest.raises(GroundingError, match="branch 0 has the fields"):
        CombinedVisionConfig(branches=[{"config": {}}])


def test_a_timm_model_is_a_branch(pixels):
    pytest.importorskip("timm")
    from transformers import TimmWrapperConfig, TimmWrapperModel

    from core.encoders.combined import branch, combine

    tower = TimmWrapperModel(TimmWrapperConfig(architecture="convnext_atto", do_pooling=False)).eval()
    model = combine(
        tower,
        branches=[branch(tower.config, width=320)],
        image_size=64,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        patch_size=32,
    )
    with torch.no_grad():
        plain = tower((pixels / 2 + 0.5 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1))
    torch.testing.assert_close(features(model, pixels), tokens(plain.last_hidden_state), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module", params=["diffusion", "combined"])
def llava(request, build, towers, tmp_path_factory):
    """A saved tiny LLaVA around an encoder, its directory and its encoder."""
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    from core.encoders.combined import combine
    from core.encoders.llava import llava_config, llava_processor

    encoder = build() if request.param == "diffusion" else combine(towers["clip"], towers["dinov2"], image_size=56)
    tokenizer = llama_tokenizer()
    text = {key: value for key, value in _llama(len(tokenizer)).items() if key != "model_type"}
    config = llava_config(
        encoder.config, LlamaConfig(**text), image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for weight in (*model.model.language_model.parameters(), *model.model.multi_modal_projector.parameters()):
        if weight.ndim > 1:
            weight.data.normal_(std=0.2)
    model.model.vision_tower.load_state_dict(encoder.state_dict())
    directory = tmp_path_factory.mktemp(f"llava_{request.param}")
    model.save_pretrained(directory)
    llava_processor(encoder.config, tokenizer, chat_template=LLAVA_CHAT).save_pretrained(directory)
    return directory, encoder


@pytest.mark.parametrize("shape", ["landscape", "square"])
def test_llava_with_the_encoder_tells_where_it_looked(llava, pictures, shape):
    directory, encoder = llava
    lmm = load_lmm(directory, device="cpu")
    image, prompt = pictures[shape], "What is in this picture?"
    found = lmm.generate(image, prompt, max_new_tokens=4, min_new_tokens=4, per_head=True)
    view = found.views[-1]
    assert view.index.shape == (4, 4) and found.attention.shape == (4, 16)
    height, width = image.height, image.width
    side = max(height, width)
    dx, dy = (side - width) // 2, (side - height) // 2
    assert view.box == pytest.approx((-dx, -dy, side - dx, side - dy))
    torch.testing.assert_close(found.attention_per_head, eager_rows(lmm, image, found), atol=1e-5, rtol=1e-4)
    again = lmm.replay(image, prompt, found.token_ids, per_head=True)
    torch.testing.assert_close(again.attention_per_head, found.attention_per_head, atol=1e-5, rtol=1e-4)
    tower = lmm.model.model.vision_tower
    assert type(tower).__name__ == type(encoder).__name__ and not any(m.training for m in tower.modules())
    learns = {name.split(".")[0] for name, weight in tower.named_parameters() if weight.requires_grad}
    assert learns == ({"captioner", "positions"} if "Diffusion" in type(tower).__name__ else set())


def eager_rows(lmm, image, found):
    """[t, l, n, k] by transformers' own eager attention on prompt and answer."""
    from core.batch import encode
    from core.prompts import render_prompt

    text = render_prompt("What is in this picture?", lmm.family, template=None, system=None)
    batch = encode(lmm.family, [image], [text], many=False)
    inputs = dict(batch.inputs)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], found.token_ids[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model = lmm.model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation({"text_config": before})
    rows = torch.stack([layer[0, :, prompt - 1 : -1][..., batch.columns[0]] for layer in attentions])
    return rows.permute(2, 0, 1, 3)


def test_lora_on_the_language_model_with_the_learnable_visual_parts(llava):
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    directory, encoder = llava
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    parts = [
        "multi_modal_projector",
        *(name for name in ("captioner", "positions") if getattr(encoder, name, None) is not None),
    ]
    tuned = get_peft_model(
        model, LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=parts)
    ).train()
    checkpointed(tuned)
    tuned.enable_input_require_grads()
    before = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    ids = torch.tensor([[1, *[model.config.image_token_id] * 16, 40, 41, 42]])
    pixel_values = torch.linspace(-1, 1, 3 * encoder.config.image_size**2).view(1, 3, *[encoder.config.image_size] * 2)
    optimiser = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(2):  # LoRA's first factor moves from the second step on
        tuned(input_ids=ids, pixel_values=pixel_values, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    moved = {name for name, weight in tuned.named_parameters() if not torch.equal(weight, before[name])}
    assert all(any(part in name for name in moved) for part in (*parts, "lora_A", "lora_B"))
    assert not [name for name in moved if any(f".{frozen}." in name for frozen in ("vae", "unet", "clip", "towers"))]
