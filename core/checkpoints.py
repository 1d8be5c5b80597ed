"""Where an LMM's weights and processor come from: the hub, a directory, or this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.cambrian import register_cambrian
from core.encoders import register_encoders
from core.errors import GroundingError
from core.families import family_class

EMBEDDED = {"embedded": "llava"} | {f"embedded/{kind}": kind for kind in ("llava", "llava_two_stages", "difflmm")}
PUBLISHED = {  # config.model_type of layouts that transformers does not know: what reads them
    "cambrian_llama": "core.cambrian.released:ReleasedCambrian",
}


def load_checkpoint(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Any]:
    """(model, processor) of a checkpoint; see `core.lmm.load_lmm` for the arguments.

    Raises:
        GroundingError: nothing loadable there, a family without an adapter or without a spatial grid, a device besides
            a device map, or a quantisation that cannot be had here.
    """
    if quantization is not None and device_map is None:
        device_map = "auto" if device == "auto" else {"": str(device)}
    elif device_map is not None and device != "auto":
        raise GroundingError(f"device {device!r} and device_map {device_map!r} were given; give one of them")
    device = torch.device(_best_device() if device == "auto" else device)
    if dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    given = {"device_map": device_map, "attn_implementation": attn_implementation}
    options = {name: value for name, value in given.items() if value is not None}
    with _told(name_or_path):
        described = _described(name_or_path, revision)
        if quantization is not None:
            options["quantization_config"] = _quantization(quantization)
        model = described.load(dtype=dtype, **options)
    return (model.to(device) if device_map is None else model), described.processor


def load_structure(name_or_path: str | Path, *, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """(model, processor) of a checkpoint whose weights are not read: the model is on the device "meta".

    Raises:
        GroundingError: as for `load_checkpoint`.
    """
    from transformers import AutoModelForImageTextToText

    with _told(name_or_path):
        described = _described(name_or_path, None)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(described.config, dtype=dtype)
    return model, described.processor


def load_processor(name_or_path: str | Path) -> Any:
    """The processor of a checkpoint alone.

    Raises:
        GroundingError: as for `load_checkpoint`.
    """
    with _told(name_or_path):
        return _described(name_or_path, None).processor


@dataclass(frozen=True)
class _Described:
    """A checkpoint before its weights are read; `load` takes the options of `from_pretrained`."""

    config: Any
    processor: Any
    load: Callable[..., nn.Module]


def _described(name_or_path: str | Path, revision: str | None) -> _Described:
    """A checkpoint's configuration and processor; refused before gigabytes are read."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    register_encoders()
    register_cambrian()
    source = _source(name_or_path)
    config = AutoConfig.from_pretrained(source, revision=revision)
    if config.model_type in PUBLISHED:
        module, name = PUBLISHED[config.model_type].split(":")
        released = getattr(import_module(module), name)(source, config, revision)
        return _Described(released.config, released.processor, released.load)
    family_class(config.model_type)
    processor = AutoProcessor.from_pretrained(source, revision=revision)
    load = partial(AutoModelForImageTextToText.from_pretrained, source, revision=revision)
    return _Described(config, processor, load)


def _quantization(wanted: str | Mapping[str, Any]) -> Any:
    """transformers' configuration of a quantisation: "4bit" or "8bit" (bitsandbytes), or the fields of any other."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    known = {"4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}, "8bit": {"load_in_8bit": True}}
    if isinstance(wanted, str) and wanted not in known:
        raise GroundingError(
            f"quantization {wanted!r} is not known; use one of {', '.join(known)}, or the fields of a configuration "
            "of transformers with its quant_method"
        )
    return AutoQuantizationConfig.from_dict(dict(known[wanted] if isinstance(wanted, str) else wanted))


@contextmanager
def _told(name_or_path: str | Path) -> Iterator[None]:
    """What transformers says of a checkpoint that it cannot load, with what can be given instead."""
    try:
        yield
    except GroundingError:
        raise
    except ImportError as error:
        raise GroundingError(f"{str(name_or_path)!r} cannot be loaded so here: {_first_line(error)}") from error
    except (OSError, ValueError) as error:
        raise GroundingError(
            f"no model could be loaded from {str(name_or_path)!r}: {_first_line(error)} Give a directory written by "
            "save_pretrained (config.json, weights, processor and tokenizer files), a hub id that this machine can "
            "download or has in its cache, or 'embedded'."
        ) from error


def _source(name_or_path: str | Path) -> str:
    name = str(name_or_path)
    if name in EMBEDDED:
        from core.weights import weights_path

        return str(weights_path(EMBEDDED[name]))
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise GroundingError(f"{name!r} has no config.json; give a directory written by save_pretrained")
    if path.is_file():
        raise GroundingError(f"{name!r} is a file; give the directory written by save_pretrained that holds it")
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_like_path and not path.exists():
        raise GroundingError(
            f"the model directory {name!r} does not exist; give a directory, a hub id or one of {', '.join(EMBEDDED)}"
        )
    return name


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line if line.endswith(".") else line + "."
