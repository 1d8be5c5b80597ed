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
from tiny_cambrian import TOWERS, tiny_cambrian
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from core.batch import encode
from core.checkpoints import load_processor
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


def picture(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# The same numbers as a plain forward pass.


def exact_norm(self, hidden):
    """Llama's RMSNorm without its detour over float32."""
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_a_plain_forward_pass(directories, variant, dtype, error, monkeypatch):
    if dtype == torch.float64:
        monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    lmm = load_lmm(directories[variant], device="cpu", dtype=dtype)
    plain = PlainCambrian(directories[variant], dtype)
    for size in SIZES.values():
        image = picture(*size)
        batch = encode(lmm.family, [image], [f"What? <image>\n{QUESTION}"], many=False)
        with torch.no_grad():
            found = lmm.model(**batch.inputs).logits[0]
        ids, columns = batch.prompt_ids[0].tolist(), batch.columns[0].tolist()
        expected = plain.logits(ids[: columns[0]], image, ids[columns[-1] + 1 :])
        torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=error * float(expected.abs().max()), rtol=0)
