"""Every segmenter equals its own class's processor, model and post-processing, prompt by prompt."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_groundings import SIZE, generation, nlp
from tiny_sam import random_sam
from tiny_segmenters import SEGMENTERS, SIDE, sam, tiny_segmenter

from core.embeddings import keep_embeddings
from core.errors import GroundingError
from core.masks import MASK_CHOICES, Segmenter, choose, load_segmenter
from core.pipeline import ground
from core.provenance import segmenter_identity
from core.rle import decode_rle
from core.segmenters.loading import BACKENDS
from core.segmenters.segment_anything import SegmentAnything
from core.segmenters.transformers_sam import TransformersSam

CLASSES = {  # kind -> transformers' model and processor, which load the same directory
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
    "sam3_tracker": ("Sam3TrackerModel", "Sam3TrackerProcessor"),
    "sam3_video": ("Sam3TrackerModel", "Sam3TrackerProcessor"),
    "edgetam": ("EdgeTamModel", "Sam2Processor"),
    "edgetam_video": ("EdgeTamModel", "Sam2Processor"),
}
KEEPING = {"sam", "sam_hq"}  # the image's ratio, beside padding
SIZES = [(60, 110), (110, 60), (90, 90)]
KINDS = pytest.mark.parametrize("kind", list(SEGMENTERS))


@cache
def folder() -> TemporaryDirectory:
    """Of all tests that only read from it; removed at the end."""
    return TemporaryDirectory()


@cache
def directory(kind: str) -> Path:
    return tiny_segmenter(kind, Path(folder().name) / kind)


@cache
def loaded(kind: str) -> Segmenter:
    return load_segmenter(str(directory(kind)), device="cpu")


@cache
def theirs(kind: str) -> tuple[Any, Any]:
    model, processor = (getattr(transformers, name) for name in CLASSES[kind])
    images = transformers.AutoImageProcessor.from_pretrained(directory(kind))
    return model.from_pretrained(directory(kind)).eval(), processor(images)


@torch.no_grad()
def reference(kind: str, image: np.ndarray, *, masks: torch.Tensor | None = None, **prompts: Any) -> Any:
    """(logits [p, 3, H, W], scores [p, 3]) as the documentation of the class says, best first."""
    model, processor = theirs(kind)
    inputs = processor(images=image, return_tensors="pt", **prompts)
    sizes = [inputs.pop("original_sizes")]
    sizes += [inputs.pop("reshaped_input_sizes")] if kind in KEEPING else []
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    found = model(**inputs, **({} if masks is None else {"input_masks": masks}), multimask_output=True)
    (logits,) = processor.post_process_masks(found.pred_masks, *sizes, binarize=False)
    return best_first(logits, found.iou_scores[0])


def best_first(masks: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = scores.argsort(1, descending=True)
    return masks[torch.arange(len(order))[:, None], order], scores.gather(1, order)


def assert_equal(found: Any, logits: torch.Tensor, scores: torch.Tensor) -> None:
    """The same scores and masks, except for pixels on the threshold."""
    ours, own = best_first(found.masks, found.scores)
    torch.testing.assert_close(own, scores, atol=1e-5, rtol=0)
    clear = logits.abs() > 1e-4
    assert torch.equal(ours[clear], logits[clear] > 0)
    assert clear.float().mean() > 0.99
    assert 0 < ours.float().mean() < 1


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def some_points(size: tuple[int, int], count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])).floor() + 0.5


@pytest.mark.parametrize("size", SIZES)
@KINDS
def test_points_equal_the_class_own_path(kind: str, size: tuple[int, int]) -> None:
    """Our points are pixel centres; every processor counts pixels, so (0.5, 0.5) is its (0, 0)."""
    image, points = picture(size), some_points(size)
    loaded(kind).set_image(image)
    found = loaded(kind).predict(points)
    assert found.masks.shape == (5, 3, *size)
    counted = (points - 0.5)[:, None].tolist()
    assert_equal(found, *reference(kind, image, input_points=[counted], input_labels=[[[1]] * 5]))
    assert (found.masks[0] != found.masks[1]).any()  # prompts are told apart


@pytest.mark.parametrize("size", SIZES[:2])
@KINDS
def test_boxes_equal_the_class_own_path(kind: str, size: tuple[int, int]) -> None:
    image, boxes = picture(size), torch.tensor([[3.0, 4, 50, 40], [20, 10, 60, 60], [0, 0, 7, 9]])
    loaded(kind).set_image(image)
    found = loaded(kind).predict_from_boxes(boxes)
    assert_equal(found, *reference(kind, image, input_boxes=[(boxes - 0.5).tolist()]))


@pytest.mark.parametrize("size", SIZES[:2])
@KINDS
def test_map_prompts_equal_a_loop_over_the_class_own_path(kind: str, size: tuple[int, int]) -> None:
    """The mask prompt lies as the image does: keeping its ratio in a corner, or stretched to the square."""
    image = picture(size)
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(5)) * 3e-4
    loaded(kind).set_image(image)
    found = loaded(kind).predict_from_maps(maps)
    side = SIDE // 4
    logits, scores = [], []
    for one in maps:
        share = (one / 2e-4).clamp(1e-3, 1 - 1e-3)
        small = tuple(int(length / max(size) * side) for length in size) if kind in KEEPING else (side, side)
        values = torch.log(share / (1 - share))[None, None]
        prompt = torch.zeros(1, 1, side, side)
        prompt[..., : small[0], : small[1]] = torch.nn.functional.interpolate(values, small, mode="bicubic")
        rows, columns = np.nonzero(share.numpy() > 0.75)
        box = [float(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        one_logits, one_scores = reference(kind, image, masks=prompt, input_boxes=[[box]])
        logits.append(one_logits)
        scores.append(one_scores)
    assert_equal(found, torch.cat(logits), torch.cat(scores))


@pytest.mark.parametrize("how", list(MASK_CHOICES))
@KINDS
def test_choosing_early_equals_choosing_late(kind: str, how: str) -> None:
    size, segmenter = SIZES[0], loaded(kind)
    segmenter.set_image(picture(size))
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(5))
    (early,) = segmenter.predict_in_parts(some_points(size), choice=how)
    pairs = [(early, segmenter.predict(some_points(size)))]
    pairs += [(segmenter.predict_from_maps(maps, choice=how), segmenter.predict_from_maps(maps))]
    for early, whole in pairs:
        late = choose(whole, how)
        assert torch.equal(early.masks, late.masks) and torch.equal(early.scores, late.scores)


@KINDS
def test_kept_embeddings_come_back_bit_for_bit(kind: str, tmp_path, monkeypatch) -> None:
    size = SIZES[1]
    first, later = (load_segmenter(str(directory(kind)), device="cpu") for _ in range(2))
    keep_embeddings(first, tmp_path)
    first.set_image(picture(size))
    keep_embeddings(later, tmp_path)
    monkeypatch.setattr(later.backend, "embed", None)  # encoding again would fail
    later.set_image(picture(size))
    assert sorted(first.embedding) == sorted(later.embedding)
    assert all(torch.equal(first.embedding[name], later.embedding[name]) for name in first.embedding)
    found, expected = later.predict(some_points(size)), first.predict(some_points(size))
    assert torch.equal(found.masks, expected.masks) and torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("preset", ["paper", "mask_prompt"])
@pytest.mark.parametrize("kind", ["sam_hq", "sam2"])
def test_an_answer_is_grounded_by_any_segmenter(kind: str, preset: str) -> None:
    image, segmenter = picture(SIZE), loaded(kind)
    found = ground(generation(), image, segmenter=segmenter, nlp=nlp(), options=preset)
    assert found.segmenter == segmenter.name and found.scores.shape == (2, 1)
    if preset == "paper":
        expected = choose(segmenter.predict(found.points))
        assert torch.equal(found.scores, expected.scores)
        for (code,), mask in zip(found.masks, expected.masks[:, 0], strict=True):
            assert torch.equal(decode_rle(code), mask)


def test_hq_sam_hands_masks_back_in_the_order_of_its_tokens() -> None:
    segmenter, heard = loaded("sam_hq"), []
    segmenter.set_image(picture(SIZES[0]))
    head = segmenter.model.mask_decoder.iou_prediction_head
    hook = head.register_forward_hook(lambda module, inputs, scores: heard.append(scores))
    found = segmenter.predict(some_points(SIZES[0], 20))
    hook.remove()
    assert torch.equal(found.scores, heard[0][0, :, 1:4])
    assert (found.scores.argmax(1) != 0).any()  # the class itself would have the best first
    assert len(head._forward_hooks) == 0


def converted(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the segment-anything package under the names of `SamModel`."""
    names = [
        (r"^image_encoder", "vision_encoder"),
        (r"patch_embed\.proj\b", "patch_embed.projection"),
        (r"\.blocks\.", ".layers."),
        (r"\.norm(\d|_final_attn)\b", r".layer_norm\1"),
        (r"neck\.0", "neck.conv1"),
        (r"neck\.1", "neck.layer_norm1"),
        (r"neck\.2", "neck.conv2"),
        (r"neck\.3", "neck.layer_norm2"),
        (r"mask_downscaling\.0", "mask_embed.conv1"),
        (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
        (r"mask_downscaling\.3", "mask_embed.conv2"),
        (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
        (r"mask_downscaling\.6", "mask_embed.conv3"),
        (r"point_embeddings", "point_embed"),
        (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        (r"output_upscaling\.0", "upscale_conv1"),
        (r"output_upscaling\.1", "upscale_layer_norm"),
        (r"output_upscaling\.3", "upscale_conv2"),
        (r"(mlps\.\d|prediction_head)\.layers\.0", r"\1.proj_in"),
        (r"(mlps\.\d|prediction_head)\.layers\.2", r"\1.proj_out"),
        (r"(mlps\.\d|prediction_head)\.layers\.1", r"\1.layers.0"),
    ]
    found = {}
    for name, value in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    found["shared_image_embedding.positional_embedding"] = found["prompt_encoder.shared_embedding.positional_embedding"]
    return found


@pytest.mark.parametrize("size", SIZES)
def test_sam_of_transformers_equals_segment_anything_with_the_same_weights(size: tuple[int, int]) -> None:
    """The packages resize pictures with other libraries: given one that needs no resizing they agree."""
    size = tuple(round(length * SIDE / max(size)) for length in size)
    model, processor = sam()
    own = random_sam()
    model.load_state_dict(converted(own.state_dict()))
    for module in model.mask_decoder.transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5  # segment-anything's; transformers has 1e-6
    ours, reference = Segmenter(TransformersSam(model, processor)), Segmenter(own)
    points, found = some_points(size), []
    for segmenter in (ours, reference):
        segmenter.set_image(picture(size))
        found.append(segmenter.predict(points))
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=1e-5, rtol=0)
    assert (found[0].masks == found[1].masks).float().mean() > 0.9999


def test_a_half_precision_encoder_changes_little_and_marks_the_records() -> None:
    whole, half = loaded("sam2"), load_segmenter(str(directory("sam2")), device="cpu", dtype="bfloat16")
    for segmenter in (whole, half):
        segmenter.set_image(picture(SIZES[0]))
    for name, exact in whole.embedding.items():
        assert half.embedding[name].dtype == torch.float32
        assert 0 < (half.embedding[name] - exact).abs().max() < 0.1 * exact.abs().max()
    points = some_points(SIZES[0])
    assert (half.predict(points).masks == whole.predict(points).masks).float().mean() > 0.95
    assert segmenter_identity(half) == segmenter_identity(whole) | {"dtype": "torch.bfloat16"}
    on_cpu = load_segmenter(str(directory("sam2")), device="cpu", dtype="auto")
    assert on_cpu.backend.precision == torch.float32
    with pytest.raises(GroundingError, match="one of auto, float32, bfloat16, float16, not 'int8'"):
        load_segmenter(str(directory("sam2")), device="cpu", dtype="int8")


@pytest.mark.parametrize("size", [(3, 40), (1, 3), (200, 3)])
def test_small_and_narrow_images_are_read_with_their_channels_last(size: tuple[int, int]) -> None:
    """Sizes that a guess of the channels' place takes for channels; a stretched image is never too narrow."""
    segmenter, image = loaded("sam2"), np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    segmenter.set_image(image)
    point = torch.tensor([[size[1] - 0.5, size[0] - 0.5]])
    found = segmenter.predict(point)
    assert found.masks.shape == (1, 3, *size)
    with torch.no_grad():
        padded = torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None], (SIDE, SIDE), mode="bilinear", antialias=True
        )
        mean, std = (
            torch.tensor(v).view(3, 1, 1)
            for v in (theirs("sam2")[1].image_processor.image_mean, theirs("sam2")[1].image_processor.image_std)
        )
        (*_, coarse) = segmenter.model.get_image_embeddings((padded / 255 - mean) / std)
    torch.testing.assert_close(segmenter.embedding["level_2"], coarse, atol=1e-4, rtol=1e-4)


# ---- refusals


def test_boxes_that_hold_nothing_of_the_image_are_refused() -> None:
    segmenter = loaded("sam")
    segmenter.set_image(picture((60, 110)))
    for box in ([5.0, 5, 5, 9], [5.0, 5, 111, 9], [-1.0, 5, 9, 9], [5.0, 5, float("nan"), 9]):
        with pytest.raises(GroundingError, match=r"are empty or reach outside the image of 60 x 110"):
            segmenter.predict_from_boxes(torch.tensor([box]))
    assert segmenter.predict_from_boxes(torch.zeros(0, 4), choice="last").masks.shape == (0, 1, 60, 110)


def test_a_model_without_mask_prompts_refuses_maps_and_answers_points() -> None:
    class PointsOnly(SegmentAnything):
        def __init__(self, model):
            super().__init__(model)
            self.mask_side = None

    segmenter = Segmenter(PointsOnly(random_sam()), name="points only")
    segmenter.set_image(picture((60, 110)))
    with pytest.raises(GroundingError, match=r"'points only' \(Sam\) takes no mask prompts; prompt it with points"):
        segmenter.predict_from_maps(torch.zeros(1, 60, 110))
    assert segmenter.predict(torch.tensor([[5.5, 5.5]])).masks.shape == (1, 3, 60, 110)


def test_models_that_are_no_segmenters_are_refused_with_those_that_are(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(GroundingError, match=r"of type 'clip', which is no segmenter known here; known are .*sam2,.*"):
        load_segmenter(str(tmp_path), device="cpu")
    with pytest.raises(GroundingError, match=r"no segmenter could be loaded from 'nobody/nothing'.*hub id"):
        load_segmenter("nobody/nothing", device="cpu")


def test_incomplete_directories_are_refused(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tiny_segmenter("sam", tmp_path)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {n: v for n, v in weights.items() if "hypernetworks" not in n}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(GroundingError, match=r"lacks 24 of the model's tensors \(mask_decoder.output_hyper.*random"):
        load_segmenter(str(copy), device="cpu")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"longest_edge": 64}}))
    with pytest.raises(GroundingError, match="makes images of 64 pixels and the model takes 128"):
        load_segmenter(str(copy), device="cpu")
    (copy / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(GroundingError, match=r"no segmenter could be loaded"):
        load_segmenter(str(copy), device="cpu")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(GroundingError, match=r"no segmenter could be loaded.*preprocessor_config.json"):
        load_segmenter(str(copy), device="cpu")


def test_every_kind_that_is_known_is_tried_here_and_written_down() -> None:
    told = (Path(__file__).parent.parent / "docs" / "segmenters.md").read_text()
    assert [kind for kind in BACKENDS if f"`{kind}`" not in told] == []
    assert set(SEGMENTERS) == set(CLASSES) == set(BACKENDS)
    assert all(
        CLASSES[kind][0] == transformers.models.auto.modeling_auto.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES[kind]
        for kind in BACKENDS
    )
