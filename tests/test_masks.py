import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from segment_anything import SamPredictor
from tiny_sam import CONFIG, random_sam, segmenter, tiny_sam

from core import masks as module
from core.errors import GroundingError
from core.masks import Masks, Segmenter, choose, load_segmenter
from core.rle import decode_rle, encode_rle

SIZES = [(60, 110), (110, 60), (90, 90)]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def some_points(size: tuple[int, int], count: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])).floor() + 0.5


@pytest.mark.parametrize("size", SIZES)
def test_points_in_one_batch_equal_segment_anythings_own_predictor_one_at_a_time(size: tuple[int, int]) -> None:
    """Our points are pixel centres; SamPredictor counts pixels, so (0.5, 0.5) is its (0, 0)."""
    image, points = picture(size), some_points(size)
    segmenter().set_image(image)
    ours = segmenter().predict(points)
    reference = SamPredictor(random_sam())
    reference.set_image(image)
    assert ours.masks.shape == (7, 3, *size)
    for i, (x, y) in enumerate(points.tolist()):
        masks, scores, _ = reference.predict(np.array([[x - 0.5, y - 0.5]]), np.array([1]))
        assert np.array_equal(ours.masks[i].numpy(), masks)
        np.testing.assert_allclose(ours.scores[i].numpy(), scores, atol=1e-5)
    assert ours.masks.any()
    assert not ours.masks.all()


def share_that_differs(one: Masks, other: Masks) -> float:
    """Share of pixels: logits that are zero but for rounding change sides when fewer masks are resized together."""
    assert one.masks.shape == other.masks.shape
    return (one.masks != other.masks).float().mean().item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["last", "best", "all"])
def test_choosing_before_the_masks_are_brought_to_size_equals_choosing_after(size: tuple[int, int], how: str) -> None:
    segmenter().set_image(picture(size))
    (early,) = segmenter().predict_in_parts(some_points(size), choice=how)
    late = choose(segmenter().predict(some_points(size)), how)
    assert share_that_differs(early, late) < 1e-4 and torch.equal(early.scores, late.scores)
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(5))
    early = segmenter().predict_from_maps(maps, temperature=None, choice=how)
    late = choose(segmenter().predict_from_maps(maps, temperature=None), how)
    assert share_that_differs(early, late) < 1e-4 and torch.equal(early.scores, late.scores)
    assert segmenter().predict_from_maps(maps[:0], choice="last").masks.shape == (0, 1, *size)


def test_prompts_taken_a_few_at_a_time_give_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter().set_image(picture((60, 110)))
    points = some_points((60, 110))
    together = segmenter().predict(points)
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 2 * 3 * 4 * CONFIG.image_size**2)
    parts = list(segmenter().predict_in_parts(points))
    assert [len(part.scores) for part in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([part.masks for part in parts]), together.masks)


@pytest.mark.parametrize("size", SIZES)
def test_map_prompts_equal_a_loop_over_segment_anythings_own_predictor(size: tuple[int, int]) -> None:
    image = picture(size)
    maps = torch.rand(4, *size, generator=torch.Generator().manual_seed(5)) * 3e-4
    maps[3] = 0  # nothing above the threshold: the box of the first pixel
    segmenter().set_image(image)
    ours = segmenter().predict_from_maps(maps)
    reference = SamPredictor(random_sam())
    reference.set_image(image)
    side = CONFIG.image_size // 4
    for i, one in enumerate(maps):
        share = (one / 2e-4).clamp(1e-3, 1 - 1e-3)
        small = (int(size[0] / max(size) * side), int(size[1] / max(size) * side))
        logits = torch.nn.functional.interpolate(
            torch.log(share / (1 - share))[None, None], small, mode="bicubic", align_corners=False
        )
        prompt = torch.zeros(1, side, side)
        prompt[:, : small[0], : small[1]] = logits[0]
        rows, columns = np.nonzero(share.numpy() > 0.75) if i < 3 else (np.array([0]), np.array([0]))
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        masks, scores, _ = reference.predict(box=box, mask_input=prompt.numpy())
        assert np.array_equal(ours.masks[i].numpy(), masks)
        np.testing.assert_allclose(ours.scores[i].numpy(), scores, atol=1e-5)


def test_without_a_temperature_the_scale_of_a_map_does_not_matter() -> None:
    segmenter().set_image(picture((60, 110)))
    maps = torch.rand(2, 60, 110, generator=torch.Generator().manual_seed(6))
    scaled = segmenter().predict_from_maps(4 * maps + 1, temperature=None)
    assert (scaled.masks == segmenter().predict_from_maps(maps, temperature=None).masks).float().mean() > 0.999


def test_an_image_is_encoded_once_until_another_is_set() -> None:
    own, calls = Segmenter(random_sam()), []
    own.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    image = picture((60, 110))
    own.set_image(image)
    own.set_image(Image.fromarray(image))
    own.set_image(image.copy())
    assert len(calls) == 1
    own.set_image(picture((60, 110), seed=1))
    own.set_image(image)
    assert len(calls) == 3
    changed = image.copy()
    changed[5, 5] ^= 1
    own.set_image(changed)
    assert len(calls) == 4


def test_choosing_keeps_the_last_the_best_or_all() -> None:
    masks = Masks(torch.arange(2 * 3).view(2, 3, 1, 1) % 2 == 0, torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]]))
    assert torch.equal(choose(masks).scores, torch.tensor([[0.2], [0.3]]))
    assert torch.equal(choose(masks, "best").scores, torch.tensor([[0.9], [0.3]]))
    assert torch.equal(choose(masks, "best").masks[0, 0], masks.masks[0, 0])
    assert choose(masks, "all") is masks
    with pytest.raises(GroundingError, match="mask choice 'first' is not known; choose one of last, best, all"):
        choose(masks, "first")


def test_run_length_codes_survive_json_and_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(7)
    for mask in (rng.random((13, 29)) > 0.6, np.zeros((4, 9), bool), np.ones((9, 4), bool)):
        code = json.loads(json.dumps(encode_rle(torch.from_numpy(mask))))
        assert np.array_equal(decode_rle(code).numpy(), mask)
        assert coco.area(code) == mask.sum()
        assert code["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def test_a_saved_model_gives_the_same_masks_as_before(tmp_path) -> None:
    loaded = load_segmenter(str(tiny_sam(tmp_path / "sam")), device="cpu")
    loaded.set_image(picture((60, 110)))
    segmenter().set_image(picture((60, 110)))
    points = some_points((60, 110))
    assert torch.equal(loaded.predict(points).masks, segmenter().predict(points).masks)


@pytest.mark.slow
def test_a_released_architecture_loads_from_a_checkpoint_and_finds_its_type(tmp_path) -> None:
    from segment_anything import sam_model_registry

    model = sam_model_registry["vit_b"]()
    torch.save(model.state_dict(), tmp_path / "sam_vit_b.pth")
    loaded = load_segmenter(str(tmp_path / "sam_vit_b.pth"), device="cpu").model
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_no_prompts_give_no_masks() -> None:
    segmenter().set_image(picture((60, 110)))
    for found in (segmenter().predict(torch.zeros(0, 2)), segmenter().predict_from_maps(torch.zeros(0, 60, 110))):
        assert found.masks.shape == (0, 3, 60, 110)
        assert found.scores.shape == (0, 3)


@pytest.mark.parametrize("point", [(-0.5, 5.0), (110.0, 5.0), (5.0, 60.0), (5.0, float("nan"))])
def test_points_outside_the_image_are_refused(point: tuple[float, float]) -> None:
    segmenter().set_image(picture((60, 110)))
    with pytest.raises(GroundingError, match=r"lie outside the image of 60 x 110 \(H x W\) pixels"):
        segmenter().predict(torch.tensor([[5.0, 5.0], point]))


def test_refusals_of_images_and_maps() -> None:
    own = Segmenter(random_sam())
    with pytest.raises(GroundingError, match="call set_image"):
        own.predict(torch.zeros(1, 2))
    with pytest.raises(GroundingError, match="needs an RGB image"):
        own.set_image(np.zeros((5, 5), np.uint8))
    with pytest.raises(GroundingError, match="too narrow to segment"):
        own.set_image(np.zeros((400, 1, 3), np.uint8))
    own.set_image(picture((60, 110)))
    with pytest.raises(GroundingError, match="do not fit the image"):
        own.predict_from_maps(torch.zeros(1, 110, 60))
    with pytest.raises(GroundingError, match="not finite"):
        own.predict_from_maps(torch.full((1, 60, 110), torch.nan))
    with pytest.raises(GroundingError, match="temperature must be positive"):
        own.predict_from_maps(torch.zeros(1, 60, 110), temperature=0.0)
    with pytest.raises(GroundingError, match="not a compressed COCO run-length code"):
        decode_rle({"size": [2, 2], "counts": [4]})


def checkpoint(directory, weights) -> str:
    torch.save(weights, directory / "some.pth")
    return str(directory / "some.pth")


def test_refusals_of_files(tmp_path) -> None:
    with pytest.raises(GroundingError, match=r"download one.*\n.*sam_vit_h_4b8939\.pth"):
        load_segmenter(str(tmp_path / "absent.pth"))
    with pytest.raises(GroundingError, match=r"config.json and model.safetensors missing"):
        load_segmenter(str(tmp_path))
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(GroundingError, match="not a readable checkpoint"):
        load_segmenter(str(tmp_path / "text.pth"))
    with pytest.raises(GroundingError, match="holds no Segment Anything weights"):
        load_segmenter(checkpoint(tmp_path, {"head.weight": torch.zeros(2)}))
    width = {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 33)}
    with pytest.raises(GroundingError, match="no model type for an encoder 33 wide"):
        load_segmenter(checkpoint(tmp_path, width))
    with pytest.raises(GroundingError, match="holds a vit_h model, not vit_b"):
        load_segmenter(
            checkpoint(tmp_path, {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 1280)}), model_type="vit_b"
        )


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path) -> None:
    directory = tiny_sam(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"width": 64}))
    with pytest.raises(GroundingError, match="do not fit the model"):
        load_segmenter(str(directory))
    (directory / "config.json").write_text(json.dumps({"depht": 2}))
    with pytest.raises(GroundingError, match="does not hold the arguments of build_sam"):
        load_segmenter(str(directory))
