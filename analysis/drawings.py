"""Figures that can be drawn again: what each was drawn from is kept beside it, in plain values.

`<name>.npz` beside a figure's PNG, PDF and CSV holds the plot function's name, its arguments and the title: arrays and
pictures as arrays, all else as JSON. Nothing in it is a pickle, and drawing again needs neither a model nor torch. A
figure is drawn from what was kept, the first time, too, so that a later drawing shows the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from analysis.figures import save_figure
from core.atomic import open_atomically
from core.errors import GroundingError

ENDING = ".npz"
RECIPE = "recipe"
ROOM = "analysis."  # what a kept drawing may call


def keep_figure(
    folder: str | Path,
    name: str,
    plot: Callable[..., Axes | Figure],
    /,
    *args: Any,
    title: str = "",
    **kwargs: Any,
) -> Axes | Figure:
    """Draw `plot(*args, **kwargs)`, save it as PNG, PDF and CSV, and keep what it was drawn from.

    Args:
        folder, name: where it is saved.
        plot: a public plot function of a module of `analysis`.
        args, kwargs: its arguments: numbers, texts, None, lists, tuples, mappings, arrays, tensors (they come to the
            function as arrays), data frames, pictures, colour scales, and dataclasses of such.
        title: of the Axes, on the left; of a Figure, above all its Axes. "" leaves the function's own.

    Returns:
        What the function returned.

    Raises:
        GroundingError: the function is not one of `analysis`, or an argument cannot be kept.
    """
    if not plot.__module__.startswith(ROOM) or getattr(import_module(plot.__module__), plot.__name__, None) is not plot:
        raise GroundingError(f"{plot.__module__}.{plot.__qualname__} is no plot function of a module of analysis")
    arrays: dict[str, np.ndarray] = {}
    recipe = {
        "plot": f"{plot.__module__}:{plot.__name__}",
        "args": [_packed(value, arrays) for value in args],
        "kwargs": {key: _packed(value, arrays) for key, value in kwargs.items()},
        "title": title,
    }
    path = Path(folder, f"{name}{ENDING}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path) as file:
        np.savez_compressed(file, **arrays, **{RECIPE: np.array(json.dumps(recipe))})
    return redraw(path)


def redraw(path: str | Path) -> Axes | Figure:
    """Draw a kept figure and save it as PNG, PDF and CSV beside its file; returns what the plot function returned.

    Raises:
        GroundingError: no such file, or one that holds no drawing of this version.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        recipe = json.loads(str(arrays.pop(RECIPE)))
        module, function = recipe["plot"].split(":")
        if not module.startswith(ROOM):
            raise GroundingError(f"{path} asks for {module}, which is no module of analysis; it was not made here")
        plot = getattr(import_module(module), function)
        args = [_unpacked(value, arrays) for value in recipe["args"]]
        kwargs = {key: _unpacked(value, arrays) for key, value in recipe["kwargs"].items()}
    except (OSError, KeyError, ValueError, AttributeError, ModuleNotFoundError) as error:
        if isinstance(error, GroundingError):
            raise
        raise GroundingError(f"{path} holds no drawing of this version ({error}); run its notebook again") from error
    drawn = plot(*args, **kwargs)
    if recipe["title"] and isinstance(drawn, Axes):
        drawn.set_title(recipe["title"], loc="left", fontsize=9)
    elif recipe["title"]:
        drawn.suptitle(recipe["title"], x=0.01, ha="left", fontsize=10)
    save_figure(drawn, path.parent, path.stem)
    return drawn


def redraw_all(root: str | Path, *, style: str = "") -> list[Path]:
    """Draw every kept figure below a folder again; returns their files.

    Args:
        root: for example a report's folder.
        style: a matplotlib style, by name or file, for all of them; it stays in force afterwards. "" is matplotlib's
            own.

    Raises:
        GroundingError: no kept figure there, or an unknown style.
    """
    found = sorted(path for path in Path(root).rglob(f"figures/*{ENDING}"))
    if not found:
        raise GroundingError(f"no kept figures below {root}; run `make report` first")
    try:
        plt.style.use(style or "default")
    except OSError as error:
        raise GroundingError(f"matplotlib knows no style {style!r}: {error}") from error
    for path in found:
        drawn = redraw(path)
        plt.close(drawn.figure if isinstance(drawn, Axes) else drawn)
    return found


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON, its arrays put aside under names of their own."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Image.Image):
        return {"picture": _aside(np.asarray(value), arrays)}
    if isinstance(value, pd.DataFrame):
        return _packed_frame(value, arrays)
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"array": _aside(value, arrays)}
    if isinstance(value, Normalize) and type(value) is Normalize:
        return {"norm": [value.vmin, value.vmax]}
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(each, arrays) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key, arrays), _packed(each, arrays)] for key, each in value.items()]}
    if is_dataclass(value) and type(value).__module__.startswith(ROOM):
        own = {each.name: _packed(getattr(value, each.name), arrays) for each in fields(value) if each.init}
        return {"dataclass": f"{type(value).__module__}:{type(value).__name__}", "fields": own}
    raise GroundingError(f"a {type(value).__name__} cannot be kept with a figure; give arrays, frames or plain values")


def _packed_frame(frame: pd.DataFrame, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    columns = []
    for name in frame.columns:
        column = frame[name]
        plain = column.dtype.kind in "biuf" and isinstance(column.dtype, np.dtype)
        values = column.to_numpy() if plain else [None if pd.isna(each) else each for each in column.astype(object)]
        columns.append([name, str(column.dtype), _packed(values, arrays)])
    return {"frame": columns, "index": _packed(list(frame.index), arrays)}


def _aside(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    name = f"array_{len(arrays)}"
    arrays[name] = array
    return name


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "picture" in value:
        return Image.fromarray(arrays[value["picture"]])
    if "array" in value:
        return arrays[value["array"]]
    if "frame" in value:
        index = _unpacked(value["index"], arrays)
        columns = {
            name: pd.Series(_unpacked(each, arrays), dtype=kind, index=index) for name, kind, each in value["frame"]
        }
        return pd.DataFrame(columns, index=index)
    if "norm" in value:
        return Normalize(*value["norm"])
    if "bytes" in value:
        return value["bytes"].encode("latin-1")
    if "list" in value or "tuple" in value:
        kind = list if "list" in value else tuple
        return kind(_unpacked(each, arrays) for each in value[kind.__name__])
    if "dict" in value:
        return {_unpacked(key, arrays): _unpacked(each, arrays) for key, each in value["dict"]}
    module, name = value["dataclass"].split(":")
    if not module.startswith(ROOM):
        raise GroundingError(f"{module} is no module of analysis; this drawing was not made here")
    return getattr(import_module(module), name)(
        **{key: _unpacked(each, arrays) for key, each in value["fields"].items()}
    )
