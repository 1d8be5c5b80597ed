"""Views: which pixels every visual token of every family sees."""

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from PIL import Image
from tiny_models import tiny_llava, tiny_llava_next
from transformers import CLIPImageProcessor, LlavaImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from core.errors import GroundingError
from core.families import FAMILIES, family_class
from core.families.base import Family
from core.generation import Generation
from core.geometry import map_to_pixels
from core.lmm import LMM, load_lmm

PROMPT = "What?"
SIZES = [(90, 140), (150, 84), (100, 100), (57, 56), (56, 58), (40, 61), (333, 200), (64, 250), (97, 31)]


def empty(lmm: LMM, image) -> Generation:
    """Views without running the model."""
    return lmm.replay(image, PROMPT, "")


@pytest.fixture(scope="module")
def padding_llava(checkpoints) -> LMM:
    return load_lmm(checkpoints["llava"], device="cpu", geometry="pad")


@pytest.fixture(scope="module")
def llavas(tmp_path_factory) -> dict[str, LMM]:
    """LLaVA with each image processor that its checkpoints come with, and with crops that are not the resize."""
    root = tmp_path_factory.mktemp("llavas")
    square = {"size": {"height": 56, "width": 56}, "do_center_crop": False}
    kinds = {
        "clip": {"image_processor_class": CLIPImageProcessor},
        "clip-pil": {"image_processor_class": CLIPImageProcessorPil},
        "llava": {"image_processor_class": LlavaImageProcessor},
        "llava-pad": {"image_processor_class": LlavaImageProcessor, "do_pad": True},
        "llava-pad-pil": {"image_processor_class": LlavaImageProcessorPil, "do_pad": True},
        "squash": {"image_processor_class": CLIPImageProcessor, **square},
        "small-crop": {"image_processor_class": CLIPImageProcessor, "size": {"shortest_edge": 71}},
        "wide-crop": {"image_processor_class": CLIPImageProcessor, "size": {"shortest_edge": 41}},
        "wide-crop-pil": {"image_processor_class": CLIPImageProcessorPil, "size": {"shortest_edge": 41}},
    }
    return {name: load_lmm(tiny_llava(root / name, **options), device="cpu") for name, options in kinds.items()}


# The pixels of a ramp tell which part of the image a token was made of.


def ramp(size: tuple[int, int]) -> Image.Image:
    """Red grows with x, green with y: from 0 to 255 over the image; blue is full, so that padding shows."""
    height, width = size
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return Image.fromarray(np.rint(np.stack([x, y, np.ones_like(x)], -1) * 255).astype(np.uint8))


def seen_by_tokens(lmm: LMM, size: tuple[int, int]) -> torch.Tensor:
    """[k, 3]: mean x, mean y (pixels of the original) and the share of image (not padding) in each token's patch."""
    prepared = lmm.family.prepare(ramp(size))
    text = lmm.family.image_block.format(placeholder=lmm.family.placeholder)
    inputs = lmm.processor(images=[prepared.image], text=[text], return_tensors="pt")
    processor, pixels = lmm.processor.image_processor, inputs["pixel_values"]
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    if lmm.model.config.model_type == "qwen2_5_vl":  # patches in blocks of 2 x 2, each [channel, time, y, x]
        patches = rearrange(pixels, "(k m) (c t p) -> k c (m t p)", m=4, c=3, t=2).mean(-1)
        patches = patches * std + mean
    else:
        pixels = pixels.flatten(0, -4) * std[:, None, None] + mean[:, None, None]
        patches = reduce(pixels, "n c (h p) (w q) -> n (h w) c", "mean", p=14, q=14)
        patches = patches[0] if lmm.model.config.model_type == "llava" else packed(lmm, patches, inputs)
    return patches * torch.tensor([size[1], size[0], 1.0])


def packed(lmm: LMM, patches: torch.Tensor, inputs: dict) -> torch.Tensor:
    """LLaVA-NeXT's own stitching, un-padding and newlines, applied to the patches' colours."""
    features, _ = lmm.model.model.pack_image_features(
        [patches], inputs["image_sizes"], vision_feature_select_strategy="default", image_newline=torch.zeros(3)
    )
    return features[0]


def check_views(lmm: LMM, size: tuple[int, int]) -> int:
    """Compare every cell that lies on the image with the ramp; returns how many were compared."""
    seen, compared = seen_by_tokens(lmm, size), 0
    for view in empty(lmm, ramp(size)).views:
        for row in range(view.shape[0]):
            for column in range(view.shape[1]):
                x, y, image = seen[view.index[row, column]].tolist()
                x0, y0, x1, y1 = view.cell(row, column)
                if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
                    assert image < 0.999 or min(x0, y0) > -1
                    continue
                compared += 1
                assert image > 0.97
                assert abs(x - (x0 + x1) / 2) < 0.6 + (x1 - x0) * 0.03
                assert abs(y - (y0 + y1) / 2) < 0.6 + (y1 - y0) * 0.03
    return compared


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_cell_sees_its_pixels(lmm, size):
    assert check_views(lmm, size) >= 3


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_cell_of_a_padded_llava_sees_its_pixels(padding_llava, size):
    assert check_views(padding_llava, size) >= (max(size) < 2 * min(size))
    (view,) = empty(padding_llava, ramp(size)).views
    x0, y0, x1, y1 = view.box
    assert x0 <= 0 and y0 <= 0 and x1 >= size[1] and y1 >= size[0]
    assert max(x1 - x0, y1 - y0) == max(size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "kind",
    ["clip-pil", "llava", "llava-pad", "llava-pad-pil", "squash", "small-crop", "wide-crop", "wide-crop-pil"],
)
def test_every_cell_of_other_image_processors(llavas, kind, size):
    assert check_views(llavas[kind], size) >= (max(size) < 2 * min(size))


def test_the_crop_of_llava_is_the_central_square(lmms):
    (view,) = empty(lmms["llava"], ramp((90, 180))).views
    assert view.box == (45.0, 0.0, 135.0, 90.0)
    (view,) = empty(lmms["llava"], ramp((180, 90))).views
    assert view.box == (0.0, 45.0, 90.0, 135.0)


def test_padding_changes_only_what_would_be_cropped(llavas, padding_llava, checkpoints):
    assert empty(padding_llava, ramp((90, 180))).views[0].box == (0.0, -45.0, 180.0, 135.0)
    assert padding_llava.family.prepare(ramp((90, 90))).image.size == (90, 90)
    corner = padding_llava.family.prepare(ramp((90, 180))).image.getpixel((0, 0))
    assert corner == tuple(int(c * 255) for c in padding_llava.processor.image_processor.image_mean)
    for kind in ("squash", "llava-pad"):
        padded = LMM(llavas[kind].model, llavas[kind].processor, geometry="pad")
        assert empty(padded, ramp((90, 140))).views[0].box == empty(llavas[kind], ramp((90, 140))).views[0].box
    for name in ("llava_next", "qwen2_5_vl"):
        padded = load_lmm(checkpoints[name], device="cpu", geometry="pad")
        assert padded.family.prepare(ramp((90, 140))).image.size == (140, 90)


def test_llava_next_has_a_base_and_an_unpadded_grid(lmms):
    for size, shape in (((96, 160), (4, 8)), ((140, 90), (8, 6)), ((50, 150), (4, 12)), ((150, 50), (12, 4))):
        found = empty(lmms["llava_next"], ramp(size))
        base, grid = found.views
        assert (base.name, grid.name) == ("base", "grid")
        assert found.view() is grid
        assert found.view("base") is base
        assert base.box == (0.0, 0.0, size[1], size[0])
        assert base.index.tolist() == torch.arange(16).reshape(4, 4).tolist()
        assert grid.shape == shape
        used = torch.cat([base.index.flatten(), grid.index.flatten()])
        newlines = set(range(found.attention.shape[1])) - set(used.tolist())
        assert newlines == {16 + row * (shape[1] + 1) + shape[1] for row in range(shape[0])}
    with pytest.raises(GroundingError, match="no view is called 'tiles'; this model has base, grid"):
        found.view("tiles")


@pytest.mark.parametrize("size", [(7, 1000), (1000, 7), (3, 500)], ids=str)
def test_a_sliver_of_an_image(lmm, size):
    found = lmm.generate(ramp(size), PROMPT, max_new_tokens=2)
    assert found.image_size == size
    assert all(int(view.index.max()) < found.attention.shape[1] for view in found.views)


@pytest.mark.parametrize("size", [(1, 300), (300, 1)], ids=str)
def test_one_pixel_wide_images_are_seen_or_refused(lmms, padding_llava, size):
    for name in ("llava", "qwen2_5_vl"):
        with pytest.raises(GroundingError, match=r"longer than 200 times its width.*crop or pad"):
            empty(lmms[name], ramp(size))
    assert padding_llava.generate(ramp(size), PROMPT, max_new_tokens=2).views[0].shape == (4, 4)
    found = lmms["llava_next"].generate(ramp(size), PROMPT, max_new_tokens=2)
    assert found.views[0].name == "base"


# The model's own features say the same.


def features(lmm: LMM, image: Image.Image) -> torch.Tensor:
    """[k, d]: what the model puts at its visual positions."""
    text = lmm.family.image_block.format(placeholder=lmm.family.placeholder)
    prepared = lmm.family.prepare(image)
    inputs = lmm.processor(images=[prepared.image], text=[text], return_tensors="pt")
    with torch.no_grad():
        inputs = {n: inputs[n] for n in ("pixel_values", "image_sizes", "image_grid_thw") if n in inputs}
        return torch.cat(list(lmm.model.model.get_image_features(**inputs, return_dict=True).pooler_output))


def check_moved_square(lmm: LMM, size: tuple[int, int]) -> None:
    """A bright square moved from cell to cell changes the feature of its cell most."""
    plain = np.full((*size, 3), 60, np.uint8)
    before = features(lmm, Image.fromarray(plain))
    for view in empty(lmm, Image.fromarray(plain)).views:
        for row in range(view.shape[0]):
            for column in range(view.shape[1]):
                x0, y0, x1, y1 = (round(edge) for edge in view.cell(row, column))
                if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
                    continue
                moved = plain.copy()
                moved[y0:y1, x0:x1] = (255, 255, 120)
                change = (features(lmm, Image.fromarray(moved)) - before).norm(dim=-1)[view.index]
                assert int(change.argmax()) == row * view.shape[1] + column
                peak = int(map_to_pixels(change, view, size=size).argmax())
                assert y0 - 1 <= peak // size[1] <= y1
                assert x0 - 1 <= peak % size[1] <= x1


@pytest.mark.parametrize("size", [(90, 140), (150, 84)], ids=["landscape", "portrait"])
def test_a_moved_square_moves_the_change(lmm, size):
    check_moved_square(lmm, size)


@pytest.mark.parametrize("size", [(90, 140), (150, 84)], ids=["landscape", "portrait"])
def test_a_moved_square_moves_the_change_under_padding(padding_llava, size):
    check_moved_square(padding_llava, size)


def test_the_model_looks_where_the_square_is(lmms):
    """End to end: attention changes most at the cells whose pixels change."""
    lmm, size = lmms["qwen2_5_vl"], (84, 140)
    plain = np.full((*size, 3), 60, np.uint8)
    before = lmm.replay(Image.fromarray(plain), PROMPT, "A cup.").attention
    hits = 0
    for column in range(5):
        moved = plain.copy()
        moved[28:56, 28 * column : 28 * (column + 1)] = (255, 255, 120)
        found = lmm.replay(Image.fromarray(moved), PROMPT, "A cup.")
        change = (found.attention - before).abs().mean(0)[found.view().index]
        hits += int(change.argmax()) == 5 + column
    assert hits >= 4


# Photographs through every family.


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_photographs(lmm, name):
    photograph = getattr(skimage.data, name)()
    found = lmm.generate(photograph, "Describe the image in detail.", max_new_tokens=5)
    again = lmm.replay(photograph, "Describe the image in detail.", found.token_ids)
    assert found.image_size == photograph.shape[:2]
    torch.testing.assert_close(found.attention, again.attention, atol=1e-5, rtol=0)
    view = found.view()
    pixels = map_to_pixels(found.attention[:, view.index], view, size=found.image_size)
    assert pixels.shape == (len(found.token_ids), *found.image_size)
    assert pixels.isfinite().all()


def test_photographs_in_a_batch(lmm):
    photographs = [skimage.data.coffee(), skimage.data.astronaut()[:, :200], skimage.data.rocket()]
    together = lmm.generate(photographs, PROMPT, max_new_tokens=5)
    for photograph, found in zip(photographs, together, strict=True):
        alone = lmm.generate(photograph, PROMPT, max_new_tokens=5)
        assert torch.equal(found.token_ids, alone.token_ids)
        torch.testing.assert_close(found.attention, alone.attention, atol=1e-5, rtol=0)
        assert [view.box for view in found.views] == [view.box for view in alone.views]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "CMYK", "1"])
def test_photographs_in_every_mode(lmm, mode, tmp_path):
    picture = Image.fromarray(skimage.data.chelsea())
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.quantize() if mode == "P" else picture.convert(mode)
    path = tmp_path / ("photo.tiff" if mode == "CMYK" else "photo.png")
    picture.save(path)
    found = lmm.generate(path, PROMPT, max_new_tokens=2)
    assert found.image_size == (300, 451)


def test_a_truncated_photograph(lmm, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(skimage.data.coffee()).save(path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(GroundingError, match=r"photo\.jpg' is truncated"):
        lmm.generate(path, PROMPT, max_new_tokens=2)


def test_exif_rotation_reaches_the_views(lmm, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(skimage.data.rocket()).save(path, exif=exif)  # 427 x 640 stored, 640 x 427 upright
    assert lmm.generate(path, PROMPT, max_new_tokens=2).image_size == (640, 427)


# What does not fit is refused.


def test_the_registry_knows_its_families():
    for name in FAMILIES:
        assert issubclass(family_class(*name.split("/")), Family)
    assert family_class("llava", "pixtral") is not family_class("llava", "clip_vision_model") is family_class("llava")


def test_settings_that_do_not_belong_to_the_model(tmp_path):
    lmm = load_lmm(tiny_llava_next(tmp_path), device="cpu")
    lmm.processor.image_processor.image_grid_pinpoints = [[56, 56]]
    lmm.model.config.vision_config.image_size = 112
    with pytest.raises(GroundingError, match=r"a base of 8 x 8 .* but the prompt holds"):
        empty(lmm, ramp((90, 140)))
    llava = load_lmm(tiny_llava(tmp_path / "llava", size={"longest_edge": 56}), device="cpu")
    llava.processor.image_processor.size = {"longest_edge": 70}
    with pytest.raises(GroundingError, match="LLaVA processors have 'shortest_edge'"):
        llava.family._resized(90, 140)


def test_old_checkpoints_without_a_patch_size(checkpoints):
    lmm = load_lmm(checkpoints["llava"], device="cpu")
    expected = lmm.generate(ramp((90, 140)), PROMPT, max_new_tokens=3)
    lmm.processor.patch_size = lmm.processor.vision_feature_select_strategy = None
    lmm.processor.num_additional_image_tokens = 0
    again = LMM(lmm.model, lmm.processor).generate(ramp((90, 140)), PROMPT, max_new_tokens=3)
    torch.testing.assert_close(again.attention, expected.attention)


def test_a_class_token_in_front_of_the_grid(checkpoints):
    lmm = load_lmm(checkpoints["llava"], device="cpu")
    lmm.processor.vision_feature_select_strategy = lmm.model.config.vision_feature_select_strategy = "full"
    found = lmm.generate(ramp((90, 140)), PROMPT, max_new_tokens=3)
    assert found.attention.shape[1] == 17
    assert found.view().index.flatten().tolist() == list(range(1, 17))


def test_interpolation_of_a_view_equals_torch_for_whole_images(lmms):
    found = lmms["qwen2_5_vl"].generate(ramp((84, 140)), PROMPT, max_new_tokens=2)
    values = found.attention[:, found.view().index]
    expected = F.interpolate(values[None], size=(84, 140), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(map_to_pixels(values, found.view(), size=(84, 140)), expected, atol=1e-5, rtol=0)
