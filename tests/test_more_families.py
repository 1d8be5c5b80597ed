"""Every further family: its rows are eager attention's own, and its cells see the pixels that its views say."""

from copy import deepcopy

import numpy as np
import pytest
import skimage.data
import torch
from eager_rows import eager_rows, options
from PIL import Image
from plain_towers import blurring, transparent
from tiny_families import BUILDERS

from core.batch import encode
from core.errors import GroundingError
from core.families import FAMILIES, family_class
from core.families.llava_next import _edges
from core.lmm import LMM, load_lmm

QUESTION = "Is there a red umbrella next to the cup?"
NEW = 6
SIZES = [(90, 140), (150, 84), (100, 100)]


@pytest.fixture(scope="module", params=BUILDERS)
def lmm(request, tmp_path_factory) -> LMM:
    """Each family in turn, in float64, where the two kernels' rounding hides nothing."""
    path = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    geometry = "pan-and-scan" if request.param.endswith("pan_and_scan") else "processor"
    lmm = load_lmm(path, device="cpu", dtype=torch.float64, geometry=geometry)
    lmm.model.set_experts_implementation("eager")  # the fast ones know no float64
    return lmm


def asked(lmm: LMM, question: str = QUESTION) -> str:
    return f"{lmm.family.image_block.format(placeholder=lmm.family.placeholder)}{question}"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=0)


def test_every_row_equals_eager(lmm, pictures):
    """Generated and replayed, alone and in a padded batch of mixed sizes, a photograph among them."""
    images = [pictures["landscape"], pictures["portrait"], pictures["square"]]
    images.append(Image.fromarray(skimage.data.coffee()))
    texts = [asked(lmm), asked(lmm, "What?"), asked(lmm, QUESTION * 2), asked(lmm)]
    expected = [eager_rows(lmm, [image], text, NEW) for image, text in zip(images, texts, strict=True)]
    alone = lmm.generate(images[0], texts[0], **options(lmm, NEW), per_head=True)
    together = lmm.generate(images, texts, **options(lmm, NEW), per_head=True)
    again = lmm.replay(images, texts, [found.token_ids for found in together], per_head=True)
    for found, (ids, rows, prompt) in zip([alone, *together, *again], [expected[0], *expected, *expected], strict=True):
        assert torch.equal(found.token_ids, ids)
        assert rows.sum(-1).mean() > 0.01
        close(found.attention_per_head, rows)
        close(found.attention, rows.mean((1, 2)))
        close(found.prompt_attention, prompt)
    for turned, found in zip(lmm.replay(images[:2], texts[:2], ["A cup.", "A red cup."]), together, strict=False):
        assert [view.box for view in turned.views] == [view.box for view in found.views]


def features(lmm: LMM, images: list[np.ndarray]) -> torch.Tensor:
    """[images, k, d]: what the decoder is given at the visual positions."""
    kept = []
    handle = lmm.family.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    batch = encode(lmm.family, [Image.fromarray(image) for image in images], [asked(lmm)] * len(images), many=True)
    with torch.no_grad():
        lmm.model(**batch.inputs, use_cache=False, logits_to_keep=1)
    handle.remove()
    return torch.stack([row[columns] for row, columns in zip(kept[0], batch.columns, strict=True)])


def decoded(lmm: LMM, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[k] each: mean x and y, in pixels, of what every token sees, read from two ramps and from plain pictures."""
    height, width = size
    levels = np.linspace(0, 255, 12).round()
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 1:] = (90, 160)

    def with_red(red: np.ndarray) -> np.ndarray:
        copy = picture.copy()
        copy[..., 0] = red.round()
        return copy

    x, y = (np.arange(width) + 0.5) / width * 255, (np.arange(height) + 0.5) / height * 255
    seen = features(lmm, [with_red(np.asarray(v)) for v in [x[None], y[:, None], *levels]])
    scale = torch.tensor(levels)
    places = []
    for ramp, extent in ((seen[0], width), (seen[1], height)):
        first, last = seen[2:-1], seen[3:]  # [levels - 1, k, d]: between which two plain pictures does it lie?
        step = last - first
        along = (((ramp - first) * step).sum(-1) / step.square().sum(-1).clamp(min=1e-12)).clamp(0, 1)
        away = (first + along[..., None] * step - ramp).norm(dim=-1)
        best = away.argmin(0)
        value = scale[best] + along.gather(0, best[None])[0] * (scale[best + 1] - scale[best])
        places.append(value / 255 * extent)
    return places[0], places[1]


def check_moved_square(lmm: LMM, size: tuple[int, int]) -> None:
    """A bright square moved from cell to cell changes the feature of its cell most, or of one beside it."""
    (view,) = lmm.replay(Image.new("RGB", size[::-1]), asked(lmm), "").views
    pictures = [np.full((*size, 3), 60, np.uint8)]
    for row, column in np.ndindex(*view.shape):
        x0, y0, x1, y1 = (round(edge) for edge in view.cell(row, column))
        pictures.append(pictures[0].copy())
        pictures[-1][y0:y1, x0:x1] = (255, 255, 120)
    seen = features(blurring(lmm), pictures)
    change = (seen[1:] - seen[0]).norm(dim=-1)[:, view.index.flatten()]
    peaks = torch.stack([change.argmax(1) // view.shape[1], change.argmax(1) % view.shape[1]], 1)
    away = peaks - torch.tensor(list(np.ndindex(*view.shape)))
    assert (away.abs() <= 1).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_cell_sees_its_pixels(lmm, size):
    if lmm.model.config.vision_config.model_type == "timm_wrapper":
        return check_moved_square(lmm, size)  # convolutions mix neighbours, so that no tower is transparent
    clear = transparent(lmm)
    x, y = decoded(clear, size)
    compared = 0
    for view in clear.replay(Image.new("RGB", size[::-1]), asked(lmm), "").views:
        for row, column in np.ndindex(*view.shape):
            x0, y0, x1, y1 = view.cell(row, column)
            if x0 < -1 or y0 < -1 or x1 > size[1] + 1 or y1 > size[0] + 1:
                continue
            compared += 1
            place = view.index[row, column]
            assert abs(float(x[place]) - (x0 + x1) / 2) < 0.6 + (x1 - x0) * 0.15
            assert abs(float(y[place]) - (y0 + y1) / 2) < 0.6 + (y1 - y0) * 0.15
    assert compared >= 3


# What does not fit is refused.


def test_tokens_that_do_not_add_up_are_refused(lmm, pictures):
    batch = encode(lmm.family, [pictures["landscape"]], [asked(lmm)], many=False)
    prepared = lmm.family.prepare(pictures["landscape"])
    with pytest.raises(GroundingError, match=r"would be \d+ visual tokens, but the prompt holds"):
        lmm.family.views(batch.inputs, 0, len(batch.columns[0]) + 3, prepared)


def test_every_family_of_the_registry_is_tested():
    variants = {"paligemma2", "gemma3_pan_and_scan"}
    elsewhere = {"llava", "llava_next", "qwen2_5_vl", "cambrian"}
    assert {name.rsplit("/")[-1] for name in FAMILIES} == BUILDERS.keys() - variants | elsewhere


def test_paligemma_is_asked_without_a_chat_template(tmp_path, pictures):
    lmm = load_lmm(BUILDERS["paligemma"](tmp_path), device="cpu")
    found = lmm.generate(pictures["square"], "caption en", max_new_tokens=2)
    text = lmm.processor.tokenizer.decode(found.prompt_ids)
    assert text.replace(lmm.family.placeholder, "").strip(" ") == "<s>caption en\n"
    assert lmm.generate(pictures["square"], "<image>caption en", max_new_tokens=2).prompt_ids.equal(found.prompt_ids)
    with pytest.raises(GroundingError, match="do not go together"):
        lmm.generate(pictures["square"], "caption en", system="Be brief.")


def test_pan_and_scan_sees_the_strips_of_long_images(tmp_path, pictures):
    path = BUILDERS["gemma3_pan_and_scan"](tmp_path)
    plain, scanning = (load_lmm(path, device="cpu", geometry=geometry) for geometry in ("pad", "pan-and-scan"))
    shapes = {"landscape": (4, 8), "portrait": (8, 4), "square": None}
    for shape, strips in shapes.items():
        (base,) = plain.replay(pictures[shape], asked(plain), "").views
        views = scanning.replay(pictures[shape], asked(plain), "").views
        assert [view.shape for view in views] == [(4, 4)] + ([strips] if strips else [])
        assert base.box == views[-1].box == (0.0, 0.0, *pictures[shape].size)
    with pytest.raises(GroundingError, match=r"unknown geometry 'pan-and-scan'; use one of processor, pad$"):
        family_class("paligemma")(plain.model, plain.processor, geometry="pan-and-scan")


def test_tiles_that_patches_do_not_fill():
    """One tile is exact; in a row of them no cell begins or ends further off than half of what the patches leave."""
    assert _edges(0, 4, 1, 60, 4, 14) == (0.0, 56.0)
    for tiles in (2, 3, 6):
        for tile, cell in np.ndindex(tiles, 4):
            found = _edges(4 * tile + cell, 4 * tile + cell + 1, tiles, 60, 4, 14)
            true = (60 * tile + 14 * cell, 60 * tile + 14 * (cell + 1))
            assert np.abs(np.subtract(found, true)).max() <= 2


def test_layers_that_share_keys_are_refused(lmms):
    model = deepcopy(lmms["llava"].model)
    model.config.text_config.num_kv_shared_layers = 1
    with pytest.raises(GroundingError, match="the last 1 layers of this Gemma 4 share keys"):
        family_class("gemma4")(model, lmms["llava"].processor)
