"""What made a result: model, data, options, and the versions of the packages behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from core.options import GroundOptions
from core.phrases import pipeline_name

if TYPE_CHECKING:
    from spacy.language import Language

    from core.lmm import LMM
    from core.masks import Segmenter

PACKAGES = (
    "attend-and-segment",
    "torch",
    "transformers",
    "segment-anything",
    "spacy",
    "pycocotools",
    "numpy",
    "pillow",
)


def run_config(
    *,
    lmm: LMM,
    segmenter: Segmenter | None,
    nlp: Language,
    prompt: str | Mapping[str, str],
    seed: int | None = None,
    options: GroundOptions | str = "paper",
    **further: Any,
) -> dict[str, Any]:
    """What determines a run's results, to open its `RunStore` with.

    Models are named and, as a name can come to stand for other weights, marked by a fingerprint of their parameters.

    Args:
        lmm, segmenter, nlp, prompt: as for `ground_dataset`.
        seed: of whatever is random in the run (the choice of images, sampling).
        options: as for `ground_dataset`.
        **further: everything else that changes the records (the data, max_new_tokens, ...), as JSON values.
    """
    model = {
        "name_or_path": lmm.name,
        "revision": getattr(lmm.model.config, "_commit_hash", None),
        "dtype": str(lmm.model.dtype),
        "geometry": lmm.family.geometry,
        "template": lmm.template,
        "fingerprint": fingerprint(lmm.model),
    }
    prompt = prompt if isinstance(prompt, str) else dict(prompt)
    return {
        "model": model,
        "segmenter": segmenter_identity(segmenter),
        "nlp": pipeline_name(nlp),
        "prompt": prompt,
        "seed": seed,
        "options": GroundOptions.of(options).as_dict(),
        **further,
    }


def segmenter_identity(segmenter: Segmenter | None) -> dict[str, str] | None:
    """What marks a segmenter in a configuration: its name, a fingerprint of its parameters, and what its encoder
    computes in where that is not float32; None of none.
    """
    if segmenter is None:
        return None
    precision = segmenter.backend.precision
    marks = {"name": segmenter.name, "fingerprint": fingerprint(segmenter.model)}
    return marks if precision == torch.float32 else marks | {"dtype": str(precision)}


def fingerprint(model: nn.Module) -> str:
    """Short hash of the names, shapes and first values of a model's parameters, the same on every device."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:8].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None where one is not installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
