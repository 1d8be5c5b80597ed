"""Several images in one prompt: rows are eager attention's own, each view sees its own image, phrases on each."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from eager_rows import eager_rows, options
from PIL import Image
from tiny_cambrian import tiny_cambrian
from tiny_families import BUILDERS

from core import load_nlp, load_segmenter
from core.attention import to_grid
from core.errors import GroundingError
from core.lmm import LMM, load_lmm
from core.phrases import phrase_at
from core.pipeline import ground, phrase_points
from core.records import RunStore
from core.several import ground_images, image_shares

FIRST = {name: getattr(tiny_models, f"tiny_{name}") for name in ("llava", "llava_next", "qwen2_5_vl")}
FIRST |= {"cambrian": tiny_cambrian}
ALL = BUILDERS | FIRST
NEW = 4


@pytest.fixture(scope="module", params=ALL)
def lmm(request, tmp_path_factory) -> LMM:
    path = ALL[request.param](tmp_path_factory.mktemp(request.param))
    geometry = "pan-and-scan" if request.param.endswith("pan_and_scan") else "processor"
    lmm = load_lmm(path, device="cpu", dtype=torch.float64, geometry=geometry)
    if request.param not in FIRST:
        lmm.model.set_experts_implementation("eager")
    return lmm


def asked(lmm: LMM, images: int, question: str) -> str:
    return "\n".join([lmm.family.image_block.format(placeholder=lmm.family.placeholder)] * images) + question


def entering(lmm: LMM, images: list[Image.Image], text: str) -> torch.Tensor:
    """[k, d]: what the decoder is given at the visual positions of a prompt."""
    from core.batch import encode
    from core.doctor.subject import entering

    batch = encode(lmm.family, [images], [text], many=False)
    return entering(lmm, batch)[batch.columns[0]]


def test_rows_of_several_images_equal_eager(lmm, pictures):
    """Generated and replayed, in a padded batch beside a prompt with one image."""
    groups = [[pictures["landscape"], pictures["portrait"]], [pictures["square"]]]
    texts = [asked(lmm, 2, "What is there?"), asked(lmm, 1, "What?")]
    expected = [eager_rows(lmm, group, text, NEW)[:2] for group, text in zip(groups, texts, strict=True)]
    together = lmm.generate(groups, texts, per_head=True, **options(lmm, NEW))
    again = lmm.replay(groups, texts, [found.token_ids for found in together], per_head=True)
    for found, (ids, rows) in zip([*together, *again], [*expected, *expected], strict=True):
        assert torch.equal(found.token_ids, ids)
        torch.testing.assert_close(found.attention_per_head.double(), rows.double(), atol=1e-5, rtol=0)
    assert [found.n_images for found in together] == [2, 1]
    assert [size for size in together[0].image_sizes] == [(90, 140), (150, 84)]


def test_each_view_sees_its_own_image_and_no_other(lmm, pictures):
    images, text = [pictures["landscape"], pictures["portrait"]], asked(lmm, 2, "What is there?")
    views = lmm.replay([images], text, [""])[0].views
    assert [view.image for view in views] == sorted(view.image for view in views) and views[-1].image == 1
    before = entering(lmm, images, text)
    for number, image in enumerate(images):
        changed = [Image.eval(each, lambda v: 255 - v) if each is image else each for each in images]
        moved = (entering(lmm, changed, text) - before).norm(dim=-1)
        for view in views:
            own = moved[view.index.flatten()]
            assert (own > 1e-5).float().mean() > 0.5 if view.image == number else own.max() < 1e-9


def test_the_views_of_an_image_are_those_that_it_has_alone(lmm, pictures):
    images = [pictures["landscape"], pictures["portrait"]]
    together = lmm.replay([images], asked(lmm, 2, "What?"), [""])[0]
    for number, image in enumerate(images):
        own = together.of_image(number)
        alone = lmm.replay(image, asked(lmm, 1, "What?"), "")
        assert own.image_size == alone.image_size and own.n_images == 1
        if lmm.family.among_others(lmm.family.prepare(image)) is None:
            assert [(v.name, v.shape, v.box) for v in own.views] == [(v.name, v.shape, v.box) for v in alone.views]
        start = min(int(view.index.min()) for view in own.views)
        first = min(int(view.index.min()) for view in alone.views)
        for mine, other in zip(own.views, alone.views, strict=False):
            if mine.shape == other.shape:
                assert torch.equal(mine.index - start, other.index - first)


def test_several_images_of_onevision_are_padded_to_squares(tmp_path):
    lmm = load_lmm(BUILDERS["llava_onevision"](tmp_path), device="cpu")
    sizes = [(90, 141), (151, 84)]
    images = [Image.new("RGB", size[::-1]) for size in sizes]
    views = lmm.replay([images], asked(lmm, 2, "What?"), [""])[0].views
    covered = 56 / 60  # of the square, by patches of 14 pixels in a tile of 60
    boxes = [(0.0, -25.0, 141 * covered, 141 * covered - 25), (-33.0, 0.0, 151 * covered - 33, 151 * covered)]
    assert [view.box for view in views] == [pytest.approx(box) for box in boxes]
    assert [int(view.index.min()) for view in views] == [0, 17]


# ---- grounded on each


@pytest.fixture(scope="module")
def embedded():
    return load_lmm("embedded", geometry="pad", device="cpu"), load_nlp("embedded"), load_segmenter("embedded")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from embedded.scenes.dataset import write_dataset

    folder = write_dataset(tmp_path_factory.mktemp("scenes"), split="val", n=2, seed=0).parent
    return sorted(folder.rglob("*.png")) or sorted(folder.rglob("*.jpg"))


def test_phrases_are_grounded_on_every_image(embedded, scenes, tmp_path):
    lmm, nlp, segmenter = embedded
    answer = lmm.replay([scenes], "What is there?", ["A yellow cloud is above a black flag."], per_head=True)[0]
    found = ground_images(answer, scenes, segmenter=segmenter, nlp=nlp)
    assert len(found) == 2 and found[0].phrases == found[1].phrases and len(found[0].phrases) == 2
    for number, each in enumerate(found):
        height, width = Image.open(scenes[number]).size[::-1]
        assert each.image_size == (height, width) and each.masks[0][0]["size"] == [height, width]
        assert torch.equal(each.points, phrase_points(answer.of_image(number), each.phrases))
        assert torch.equal(each.maps, found[0].maps)  # over all k tokens; the views tell the images apart
    store = RunStore(tmp_path, {"what": "two images"})
    store.write("second", found[1])
    kept = store.read("second")
    assert kept.image_size == found[1].image_size and torch.equal(kept.view.index, found[1].view.index)
    shares = image_shares(answer, found[0].phrases)
    raw = torch.stack([to_grid(answer.attention, answer.of_image(i).view()).sum((1, 2)) for i in (0, 1)], 1)
    tokens = found[0].phrases[0].tokens
    expected = raw[list(tokens)].mean(0)
    torch.testing.assert_close(shares[0], expected / expected.sum(), atol=1e-5, rtol=0)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_images_that_do_not_fit_are_refused(embedded, scenes):
    lmm, nlp, _ = embedded
    answer = lmm.replay([scenes], "What is there?", ["A flag."])[0]
    phrase = phrase_at(answer.text, answer.token_spans, (0, 6))
    with pytest.raises(GroundingError, match="the prompt held 2 images; ground the answer on each"):
        ground(answer, scenes[0], segmenter=None, nlp=nlp)
    with pytest.raises(GroundingError, match="1 images were given, and the prompt held 2"):
        ground_images(answer, scenes[:1], segmenter=None, nlp=nlp, phrases=[phrase])
    with pytest.raises(GroundingError, match="there is no image 2; the prompt held 2"):
        answer.of_image(2)
    with pytest.raises(GroundingError, match="list of images is empty"):
        lmm.replay([[]], "What?", ["A flag."])
    one = lmm.family.placeholder
    with pytest.raises(GroundingError, match=r"holds 1 image placeholders .* for 2 image\(s\)"):
        lmm.replay([scenes], f"{one} What?", ["A flag."])
    alone = lmm.replay(scenes[0], "What?", "A flag.")
    assert alone.of_image(0) is alone and alone.n_images == 1


def test_an_adapter_that_counts_wrong_is_refused(embedded, scenes, monkeypatch):
    lmm, _, _ = embedded
    monkeypatch.setattr(type(lmm.family), "among_others", lambda self, prepared: (7, ()))
    with pytest.raises(GroundingError, match="hold 200 visual tokens, alone they hold 14"):
        lmm.replay([scenes], "What?", ["A flag."])


def test_frames_of_a_video_are_several_images(embedded):
    """A square that moves from frame to frame is found where it is in each, by what the decoder is given there."""
    lmm, _, _ = embedded
    frames = []
    for x in (10, 60, 110):
        frame = np.full((120, 160, 3), 128, np.uint8)
        frame[40:80, x : x + 40] = (255, 220, 0)
        frames.append(Image.fromarray(frame))
    plain = [Image.new("RGB", (160, 120), (128, 128, 128))] * 3
    text = asked(lmm, 3, "What is there?")
    moved = (entering(lmm, frames, text) - entering(lmm, plain, text)).norm(dim=-1)
    answer = lmm.replay([frames], text, ["A square."])[0]
    for number, x in enumerate((10, 60, 110)):
        view = answer.of_image(number).view()
        row, column = divmod(int(moved[view.index].argmax()), view.shape[1])
        x0, y0, x1, y1 = view.cell(row, column)
        assert x - 16 <= (x0 + x1) / 2 <= x + 56 and 24 <= (y0 + y1) / 2 <= 96
