"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

TEMPORARY = ".tmp-"
_HOST = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())
_PROCESS = uuid4().hex[:8]  # tells this process from an earlier one with the same number
_NAME = re.compile(re.escape(TEMPORARY) + r"(?P<host>\w+)-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-[0-9a-f]{8}$")
_ABANDONED = 24 * 3600  # seconds after which another machine's unfinished file counts as left behind


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, now or after a crash, sees the old content or all of the new one."""
    with open_atomically(path) as file:
        file.write(content)


def save_tensors(content: Any, path: Path) -> None:
    """Keep what `torch.save` takes in a file that is there whole or not at all; a reader may have the old one mapped.

    What killed writers left in the folder is removed first, since such files are large.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent)
    with open_atomically(path) as file:
        torch.save(content, file)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its place when the block ends without an error, as `write_atomically` has it.

    What is written goes to a file beside it, is flushed to the disk and renamed; a killed writer leaves only a
    `*.tmp-*` file.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{_HOST}-{os.getpid()}-{_PROCESS}-{uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_stale(directory: Path) -> list[Path]:
    """Delete the unfinished files that dead writers left in a directory; those of living writers stay."""
    removed = []
    for path in directory.glob(f"*{TEMPORARY}*"):
        match = _NAME.search(path.name)
        if match and _is_dead(match["host"], int(match["pid"]), match["process"], path):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _is_dead(host: str, pid: int, process: str, path: Path) -> bool:
    if host != _HOST:
        try:
            return time.time() - path.stat().st_mtime > _ABANDONED
        except FileNotFoundError:
            return False
    if pid == os.getpid():
        return process != _PROCESS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
