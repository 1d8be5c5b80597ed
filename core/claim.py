"""How a run claims its folder: a JSON file with its configuration, which the same run accepts and another refuses.

While it trains there, it also holds the folder, so that the same run started twice does not undo what the first writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.atomic import write_atomically
from core.errors import GroundingError
from core.provenance import package_versions

FORMAT = 2  # of the claim and of the records beside it
LISTED = 6  # changed settings that a refusal names; more are counted
LOCK = "training.lock"
_held: set[Path] = set()  # by this process, which some file systems' locks (NFS) would let have a folder twice
ABSENT = object()


def claim(
    file: str | Path, config: Mapping[str, Any], *, drop: Path | None = None, advice: str = "", rank: int = 0
) -> dict[str, Any]:
    """Claim the folder that `file` lies in for one configuration, or go on in it with the same one.

    Args:
        file: the claim; it and its folder are made if absent.
        config: everything that determines the results, as JSON values.
        drop: what to delete when the folder has another configuration, which then gives way; None refuses it.
        advice: what else than another folder or the same settings helps, for the refusal.
        rank: number of this process where several share the folder; only 0 writes.

    Returns:
        The claim: {"format", "created", "config", "versions"}.

    Raises:
        GroundingError: the folder has another configuration, the claim is damaged, or `config` is not JSON.
    """
    file, config = Path(file), _as_json(config)
    if file.is_file():
        about = read_claim(file)
        if about["config"] == config:
            return about
        if drop is None:
            refuse_other(file.parent, about["config"], config, advice=advice)
        shutil.rmtree(drop, ignore_errors=True)
    created, versions = datetime.now(UTC).isoformat(), package_versions()
    about = {"format": FORMAT, "created": created, "config": config, "versions": versions}
    if rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(about, indent=2).encode())
    return about


@contextmanager
def hold(folder: str | Path, *, rank: int = 0) -> Iterator[None]:
    """Hold a folder for this process, or its group of processes, until the end of the block; a killed one lets it go.

    Args:
        folder: of the run; made if absent. The file "training.lock" stays in it.
        rank: number of this process where several share the folder; only 0 holds it, for all.

    Raises:
        GroundingError: another process holds it, or this one already.
    """
    if rank:
        yield
        return
    from filelock import FileLock, Timeout

    folder = Path(folder).resolve()
    advice = "wait until it ends, or give another folder"
    if folder in _held:
        raise GroundingError(f"this process is training in {str(folder)!r} already; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GroundingError(f"another process is training in {str(folder)!r}; {advice}") from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        lock.release()


def read_claim(file: str | Path) -> dict[str, Any]:
    """What `claim` wrote. A file without "config", as training wrote it before, is the configuration itself.

    Raises:
        GroundingError: a damaged file.
    """
    content = read_object(Path(file))
    return content if isinstance(content.get("config"), dict) else {"config": content}


def read_object(file: Path, *, advice: str = "restore it, or give another folder") -> dict[str, Any]:
    """The JSON object in a file that some run wrote; `advice` says what to do where it is damaged.

    Raises:
        GroundingError: a damaged file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, not an object")
    except (ValueError, TypeError) as error:
        raise GroundingError(f"{file} is damaged ({error}); {advice}") from error
    return content


def refuse_other(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], *, advice: str = "") -> None:
    """Refuse to go on in a folder whose configuration is not this one.

    Raises:
        GroundingError: the configurations differ; the message names each setting that does, then and now.
    """
    if then == now:
        return
    flat = [dict(_flatten(each)) for each in (then, now)]
    names = [key for key in dict.fromkeys([*flat[1], *flat[0]]) if _of(flat[0], key) != _of(flat[1], key)]
    told = [f"{key} {_shown(flat[0], key)} then, {_shown(flat[1], key)} now" for key in names[:LISTED]]
    told += [f"{len(names) - LISTED} more"] if len(names) > LISTED else []
    raise GroundingError(
        f"{str(folder)!r} was begun with other settings: {'; '.join(told)}. Give another folder, or the same settings "
        f"to go on{f', or {advice}' if advice else ''}"
    )


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise GroundingError(f"a run's configuration must be JSON values (text, numbers, lists): {error}") from error


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every entry of nested mappings; an empty mapping is a value."""
    entries: list[tuple[str, Any]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        entries += _flatten(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return entries


def _of(flat: Mapping[str, Any], key: str) -> Any:
    return flat.get(key, ABSENT)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    text = repr(flat[key]) if key in flat else "absent"
    return text if len(text) <= 200 else f"{text[:200]}..."
