"""Shapes are checked while the tests run; tiny checkpoints are built once per session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a wrong test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook(["core", "embedded", "analysis"], "beartype.beartype")  # before anything imports them

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny_models  # noqa: E402
from PIL import Image  # noqa: E402

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Directories of the tiny checkpoints by model type."""
    root = tmp_path_factory.mktemp("checkpoints")
    builders = {name: getattr(tiny_models, f"tiny_{name}") for name in FAMILIES}
    return {name: builder(root / name) for name, builder in builders.items()}


@pytest.fixture(scope="session")
def lmms(checkpoints):
    """Loaded tiny models by model type, with their processors' own geometry."""
    from core.lmm import load_lmm

    return {name: load_lmm(path, device="cpu") for name, path in checkpoints.items()}


@pytest.fixture(params=FAMILIES)
def lmm(request, lmms):
    """Each family in turn."""
    return lmms[request.param]


@pytest.fixture(scope="session")
def pictures():
    """Smooth random pictures of several shapes: landscape, portrait, square, small."""
    rng = np.random.default_rng(0)
    sizes = {"landscape": (90, 140), "portrait": (150, 84), "square": (100, 100), "small": (40, 61)}

    def picture(height: int, width: int) -> Image.Image:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)

    return {name: picture(*size) for name, size in sizes.items()}


@pytest.fixture(scope="module")
def embedded_parts():
    """The embedded LLaVA, segmenter and pipeline, as `capture_run` takes them."""
    from core import load_lmm, load_nlp, load_segmenter

    return {
        "lmm": load_lmm("embedded", geometry="pad", device="cpu"),
        "segmenter": load_segmenter("embedded", device="cpu"),
        "nlp": load_nlp("embedded"),
    }


@pytest.fixture(scope="module")
def captured(embedded_parts, tmp_path_factory):
    """(settings, data set, store) of a captured run of two scenes of different sizes, with answers of 24 tokens."""
    from analysis.captured import capture_run
    from analysis.settings import Settings

    folder = tmp_path_factory.mktemp("captured")
    short = {"generation": {"max_new_tokens": 24}, "n_images": 2}
    settings = Settings(output_dir=str(folder / "one"), runs_dir=str(folder / "runs"), **short)
    dataset = settings.open_dataset()
    return settings, dataset, capture_run(settings, dataset, told=False, **embedded_parts)
