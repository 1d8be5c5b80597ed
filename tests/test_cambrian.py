"""Cambrian-1 from its published layout: the same numbers as a plain forward pass, eager rows, honest refusals."""

import json
import re
from copy import deepcopy

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from plain_cambrian import PlainCambrian
from safetensors.torch import load_file, save_file
from tiny_cambrian import TOWERS, llama_3_tokenizer, tiny_cambrian
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from core.batch import encode
from core.cambrian.geometry import kept_shape
from core.checkpoints import load_processor, load_structure
from core.doctor import examine
from core.errors import GroundingError
from core.lmm import LMM, load_lmm

QUESTION = "Is there a red umbrella next to the cup?"
SIZES = {"landscape": (90, 140), "portrait": (150, 84), "square": (100, 100), "long": (40, 250), "odd": (97, 96)}
VARIANTS = {  # of config.json
    "as published": {},
    "at the input only": {"connector_only": True},
    "two groups of queries": {"num_query_group": 2, "query_num_list": [64, 16], "connector_depth": 1},
    "Vicuna's": {"llama_3": False, "start_of_vision_sampler_layers": 1, "rope_theta": 10000.0},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("cambrian")
    return {name: tiny_cambrian(root / name, **changes) for name, changes in VARIANTS.items()}


@pytest.fixture(scope="module")
def directory(directories):
    return directories["as published"]


@pytest.fixture(scope="module")
def lmm(directory) -> LMM:
    return load_lmm(directory, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def single(directory) -> LMM:
    return load_lmm(directory, device="cpu")


def picture(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# The same numbers as a plain forward pass.


def exact_norm(self, hidden):
    """Llama's RMSNorm without its detour over float32."""
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


def check_logits(lmm: LMM, plain: PlainCambrian, sizes: list, error: float) -> None:
    for size in sizes:
        image = picture(*size)
        batch = encode(lmm.family, [image], [f"What? <image>\n{QUESTION}"], many=False)
        with torch.no_grad():
            found = lmm.model(**batch.inputs).logits[0]
        ids, columns = batch.prompt_ids[0].tolist(), batch.columns[0].tolist()
        expected = plain.logits(ids[: columns[0]], image, ids[columns[-1] + 1 :])
        torch.testing.assert_close(
            found[:, : expected.shape[1]], expected, atol=error * float(expected.abs().max()), rtol=0
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_a_plain_forward_pass(directories, variant, monkeypatch):
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    lmm = load_lmm(directories[variant], device="cpu", dtype=torch.float64)
    sizes = [SIZES[name] for name in (SIZES if variant == "as published" else ("landscape", "portrait"))]
    check_logits(lmm, PlainCambrian(directories[variant], torch.float64), sizes, 1e-9)


def test_logits_equal_a_plain_forward_pass_in_single_precision(single, directory):
    check_logits(single, PlainCambrian(directory, torch.float32), [SIZES["landscape"], SIZES["square"]], 1e-5)


# Attention rows are eager attention's own.


def options() -> dict:
    return {"max_new_tokens": 6, "do_sample": False, "repetition_penalty": 1.0}


def eager_rows(lmm: LMM, image: Image.Image, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(new ids [t], their rows [t, l, n, k]) of one picture alone, by transformers' eager attention."""
    model = deepcopy(lmm.model)
    model.set_attn_implementation("eager")
    inputs = lmm.processor(images=[image], text=[text], add_special_tokens=True, return_tensors="pt")
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    found = model.generate(**inputs, **options(), output_attentions=True, return_dict_in_generate=True)
    columns = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    rows = [torch.stack([layer[0, :, -1, columns] for layer in layers]) for layers in found.attentions]
    return found.sequences[0, inputs["input_ids"].shape[1] :], torch.stack(rows)


def test_every_row_equals_eager(lmm):
    images = [*map(lambda size: picture(*size), SIZES.values()), Image.fromarray(skimage.data.coffee())]
    texts = [f"<image>\n{question}" for question in ("What?", QUESTION, QUESTION * 2, "What?", "Is it?", QUESTION)]
    expected = [eager_rows(lmm, image, text) for image, text in zip(images, texts, strict=True)]
    alone = lmm.generate(images[0], texts[0], **options(), per_head=True)
    together = lmm.generate(images, texts, **options(), per_head=True)
    again = lmm.replay(images, texts, [found.token_ids for found in together], per_head=True)
    expected = [expected[0], *expected, *expected]
    for found, (ids, rows) in zip([alone, *together, *again], expected, strict=True):
        assert torch.equal(found.token_ids, ids)
        assert rows.sum(-1).mean() > 0.01
        torch.testing.assert_close(found.attention_per_head.double(), rows, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.attention.double(), rows.mean((1, 2)), atol=1e-5, rtol=0)


def test_samplers_inside_change_what_is_seen(single):
    """Weights that were not read would go unnoticed otherwise."""
    image = picture(90, 140)
    before = single.replay(image, "What?", "A cup.").attention
    for layer in single.model.config.sampled_layers:
        changed = deepcopy(single.model)
        changed.model.language_model.layers[layer].sampler.layers[0].proj_out.linear_2.weight.data.zero_()
        assert not torch.allclose(LMM(changed, single.processor).replay(image, "What?", "A cup.").attention, before)


def test_the_doctor_passes(single):
    found = examine(single, progress=False)
    assert found.passed, str(found)
    assert {each.status for each in found.findings} == {"pass"}, str(found)


# Where every cell lies.


@pytest.mark.parametrize("size", [*SIZES.values(), (480, 640), (333, 200), (3, 20)], ids=str)
def test_cells_are_those_of_the_padded_square(lmm, size):
    (view,) = lmm.replay(picture(*size), "What?", "").views
    (h, w), (x0, y0, x1, y1) = view.shape, view.box
    cell, offset = max(size) / 8, ((max(size) - size[1]) // 2, (max(size) - size[0]) // 2)
    assert view.index.tolist() == [[row * (w + 1) + column for column in range(w)] for row in range(h)]
    assert ((x1 - x0) / w, (y1 - y0) / h) == pytest.approx((cell, cell))
    half = cell / 2 + 0.5  # a picture stands on whole pixels
    assert max(abs(x0), abs(y0), abs(x1 - size[1]), abs(y1 - size[0])) < half
    assert [(v + o) / cell % 1 for v, o in zip((x0, y0), offset, strict=True)] == pytest.approx([0, 0], abs=1e-9)


def test_published_sizes():
    shapes = {(480, 640): (18, 24), (640, 480): (24, 18), (500, 500): (24, 24), (427, 640): (16, 24)}
    assert {size: kept_shape(size, 24) for size in shapes} == shapes


def test_too_long_pictures_are_refused(lmm):
    assert lmm.replay(picture(20, 150), "What?", "").views[0].shape == (2, 8)
    with pytest.raises(GroundingError, match=r"900 x 20 pixels is more than 8 times as long as wide.*crop it"):
        lmm.generate(picture(20, 900), "What?")


# Pictures and prompts as published.


def test_pictures_equal_the_published_processing(lmm):
    """A padded, resized square through the processors that the published code takes: CLIP's, and torchvision's."""
    from torchvision.transforms import v2
    from transformers import BitImageProcessor, CLIPImageProcessor

    clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def transform(size, mean, std):
        steps = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        return v2.Compose([v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(size), *steps])

    def processor(kind, size, normalisation):
        made = kind(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=normalisation[0],
            image_std=normalisation[1],
        )
        return lambda image: made(image, return_tensors="pt")["pixel_values"][0]

    towers = [
        (126, clip[0], transform(126, [0.5] * 3, [0.5] * 3)),
        (112, clip[0], processor(CLIPImageProcessor, 112, clip)),
        (126, imagenet[0], processor(BitImageProcessor, 126, imagenet)),
        (256, clip[0], transform(256, *clip)),
    ]
    image = picture(90, 140)
    found = lmm.processor.image_processor([image], return_tensors="pt")["pixel_values"][0]
    for size, colour, shown in towers:
        square = Image.new("RGB", (140, 140), tuple(int(x * 255) for x in colour))
        square.paste(image, (0, 25))
        expected = shown(square.resize((size, size)))
        torch.testing.assert_close(found[: 3 * size * size].unflatten(0, (3, size, size)), expected, atol=1e-6, rtol=0)
        found = found[3 * size * size :]
    assert len(found) == 0


def test_prompts_are_the_published_conversations(single, directories):
    """Word for word. With Llama-3's own tokenizer the picture stands at 91, the image_position of the published 8B."""
    system = (
        "You are Cambrian, a highly intelligent multimodal AI trained by NYU Vision X. \n    As a multimodal AI, you "
        "have the ability to process and analyze images. Whenever an image is present in the conversation, very "
        "carefully examine it and consider its content when formulating your response.\n    You should give concise "
        "responses to very simple questions, but provide thorough responses to more complex and open-ended questions. "
    )
    llama_3 = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>SYSTEM<|eot_id|><|start_header_id|>user"
        "<|end_header_id|><image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    )
    eight, thirteen = single, load_lmm(directories["Vicuna's"], device="cpu")
    options = {"max_new_tokens": 1}
    image = picture(100, 100)
    assert words(eight, eight.generate(image, "What?", **options)) == llama_3.replace("SYSTEM", system)
    brief = eight.generate(image, "What?", system="Be brief.", **options)
    assert words(eight, brief) == llama_3.replace("SYSTEM", "Be brief.")
    found = words(thirteen, thirteen.generate(image, "What?", **options))
    assert re.fullmatch(r"<s> ?A chat between a curious user .*questions\. USER: <image> ?\nWhat\? ASSISTANT:", found)


def words(lmm: LMM, found) -> str:
    text = lmm.processor.tokenizer.decode(found.prompt_ids)
    return re.sub("(<image> ?)+", "<image>", text)


# What is saved loads again, and what is wrong is said.


def test_a_saved_model_is_the_same(single, tmp_path):
    published = single
    published.model.save_pretrained(tmp_path)
    published.processor.save_pretrained(tmp_path)
    saved = load_lmm(tmp_path, device="cpu")
    assert saved.model.config.model_type == "cambrian"
    ours, theirs = (lmm.generate(picture(90, 140), QUESTION, **options()) for lmm in (saved, published))
    state = published.model.state_dict()
    assert saved.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in saved.model.state_dict().items())
    assert ours.text == theirs.text
    torch.testing.assert_close(ours.attention, theirs.attention, atol=1e-6, rtol=0)
    assert torch.equal(ours.prompt_ids, theirs.prompt_ids)


def test_shards_in_torch_files_and_half_precision(single, directory, tmp_path):
    folder = copied(directory, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shards, whole = load_lmm(folder, device="cpu", dtype=torch.bfloat16), single.model.state_dict()
    assert all(torch.equal(value, whole[name].bfloat16()) for name, value in shards.model.state_dict().items())
    assert len(shards.generate(picture(90, 140), "What?", **options()).attention) > 0


def test_a_device_map_places_a_published_checkpoint(single, directory):
    placed = load_lmm(directory, device_map={"": "cpu"}, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(value, placed[name]) for name, value in single.model.state_dict().items())


def test_parts_on_disk_change_nothing(single, tmp_path):
    """Offloaded parts are loaded when they are called, and only then."""
    single.model.save_pretrained(tmp_path / "saved")
    names = dict(single.model.model.named_children()).keys() - {"language_model"}
    layers = {f"model.language_model.layers.{layer}": ("disk", "cpu")[layer % 2] for layer in range(4)}
    rest = {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    rest |= {"model.vision_query": "cpu", "model.image_newline": "cpu"}
    places = {f"model.{name}": "disk" for name in names} | layers | rest | {"lm_head": "cpu"}
    model = type(single.model).from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=str(tmp_path / "offloaded")
    )
    assert (
        model.model.towers[0].body.pos_embed.is_meta and model.model.language_model.layers[0].mlp.up_proj.weight.is_meta
    )
    found, expected = (
        lmm.generate(picture(90, 140), "What?", **options()) for lmm in (LMM(model, single.processor), single)
    )
    assert torch.equal(found.token_ids, expected.token_ids)
    torch.testing.assert_close(found.attention, expected.attention, atol=1e-6, rtol=0)


def test_the_processor_alone(directory):
    assert load_processor(directory).side == 8


def copied(directory, target):
    """A copy whose encoders are links."""
    folder = target / "copy"
    folder.mkdir()
    for file in directory.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def with_weights(directory, target, change):
    folder = copied(directory, target)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    return folder


def with_config(directory, target, **changes):
    folder = copied(directory, target)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None or name not in changes}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_missing_weights_are_named(directory, tmp_path):
    folder = with_weights(directory, tmp_path, lambda weights: weights.pop("model.vision_query"))
    with pytest.raises(GroundingError, match=r"lacks model\.vision_query; give the complete published directory"):
        load_lmm(folder, device="cpu")


def test_weights_of_another_size_are_named(directory, tmp_path):
    folder = with_weights(directory, tmp_path, lambda weights: weights.update({"model.image_newline": torch.zeros(5)}))
    with pytest.raises(
        GroundingError, match=r"image_newline has shape \[5\] in .* but its config\.json asks for \[32\]"
    ):
        load_lmm(folder, device="cpu")


def test_weights_without_a_place_are_named(directory, tmp_path):
    folder = with_config(directory, tmp_path, connector_only=True)
    with pytest.raises(GroundingError, match=r"has no place for .*vision_sampler_layers\.0.* and \d+ more"):
        load_lmm(folder, device="cpu")


def test_what_the_published_code_does_not_read_is_left(directory, tmp_path):
    def add(weights):
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    load_lmm(with_weights(directory, tmp_path, add), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_num_list": None}, r"config\.json of .* does not say query_num_list, as published ones do"),
        ({"mm_projector_type": "mlp2x_gelu"}, r"joins its encoders with 'mlp2x_gelu'.*'sva'"),
        ({"mm_use_im_start_end": True}, r"puts tokens around its pictures \(mm_use_im_start_end\)"),
        ({"mm_vision_select_feature": "cls_patch"}, r"takes 'cls_patch' features"),
        ({"mm_vision_tower_aux_list": ["eva/clip-g", *list(TOWERS)[1:]]}, r"the encoder 'eva/clip-g' is not known"),
        (
            {"mm_vision_tower_aux_list": ["facebook/dinov2-base", *list(TOWERS)[1:]]},
            r"the encoder 'facebook/dinov2-base' could not be read.*folder towers/",
        ),
        ({"mm_vision_tower_aux_token_len_list": [64, 64, 64, 1000]}, r"1000 visual tokens are no square grid"),
        ({"mm_vision_tower_aux_token_len_list": [64, 64, 64, 900]}, r"tower 3 has 30 x 30 features.*8 x 8 cells"),
        ({"num_of_vision_sampler_layers": 5}, r"5 samplers from layer 0 on in steps of 2 end at layer 8"),
    ],
    ids=str,
)
def test_other_checkpoints_are_refused(directory, tmp_path, changes, message):
    with pytest.raises(GroundingError, match=message):
        load_processor(with_config(directory, tmp_path, **changes))


def test_a_folder_without_weights(directory, tmp_path):
    folder = copied(directory, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(GroundingError, match=r"has no weights; give a directory with model\.safetensors"):
        load_lmm(folder, device="cpu")


def test_pictures_and_slots_must_fit(lmm):
    batch = encode(lmm.family, [picture(90, 140)], ["<image>\nWhat?"], many=False)
    with pytest.raises(GroundingError, match=r"pixel_values have shape \[b, \d+\] for towers that see \[126, 112,"):
        lmm.model(**batch.inputs | {"pixel_values": batch.inputs["pixel_values"][:, 1:]})
    with pytest.raises(GroundingError, match=r"hold 54 visual slots for 72 visual tokens"):
        lmm.model(**batch.inputs | {"image_sizes": torch.tensor([[9, 9]])})
    with pytest.raises(GroundingError, match="needs input_ids with its slots and image_sizes"):
        lmm.model(**batch.inputs | {"image_sizes": None})
    with pytest.raises(GroundingError, match=r"6 rows of 8 cells and a newline would be 54 visual tokens, but .* 57"):
        lmm.family.views(batch.inputs, 0, 57, lmm.family.prepare(picture(90, 140)))


# The real sizes, without weights.


def test_the_published_8b_has_the_sizes_of_its_parts(tmp_path):
    """config.json as the published training script sets it; the encoders' folders say what their hub's files do."""
    llama_3_tokenizer().save_pretrained(tmp_path)
    llama = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
    names = [*list(TOWERS)[:2], "facebook/dinov2-giant-res378", "clip-convnext-XXL-multi-stage"]
    vision = {"mm_vision_tower_aux_list": names, "mm_vision_tower_aux_token_len_list": [576, 576, 576, 9216]}
    vision |= {"mm_projector_type": "sva", "mm_vision_select_layer": -2, "vision_hidden_size": 1024}
    vision |= {"image_token_len": 576, "num_query_group": 1, "query_num_list": [576], "connector_depth": 3}
    vision |= {"connector_only": False, "num_of_vision_sampler_layers": 10}
    vision |= {"start_of_vision_sampler_layers": 0, "stride_of_vision_sampler_layers": 3}
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    dino = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True}
    written = {
        "config.json": {"model_type": "cambrian_llama"} | llama | vision,
        "towers/CLIP-ViT-SO400M-14-384/open_clip_config.json": open_clip("vit_so400m_patch14_siglip_384"),
        "towers/clip-vit-large-patch14-336/config.json": {"model_type": "clip", "vision_config": tower | clip},
        "towers/dinov2-giant-res378/config.json": {"model_type": "dinov2", "image_size": 518, "patch_size": 14} | dino,
        "towers/clip-convnext-XXL-multi-stage/open_clip_config.json": open_clip("convnext_xxlarge"),
    }
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    model, processor = load_structure(tmp_path, dtype=torch.bfloat16)
    counts = [sum(weight.numel() for weight in tower.parameters()) for tower in model.model.towers]
    assert [round(count / 1e6) for count in counts] == [413, 304, 1136, 843]
    shown = [(tower["size"], tower["side"], tower["width"]) for tower in model.config.towers]
    assert shown == [(384, 24, 1152), (336, 24, 1024), (378, 24, 1536), (1024, 96, 5760)]
    assert model.config.sampled_layers == list(range(0, 30, 3)) and processor.side == 24
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 1) == 11.0


def open_clip(architecture: str) -> dict:
    return {"model_cfg": {"vision_cfg": {"timm_model_name": architecture}}}
