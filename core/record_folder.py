"""Records on disk: one file per image, written whole or not at all, so that a run can be killed and continued.

    <run>/run.json                      configuration, package versions, creation time
    <run>/records/<id>.safetensors      a record: tensors, and the rest as JSON in the file's metadata
    <run>/records/<id>.json             an image that has none: {"id", "error"}

Ids are percent-encoded in file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote, unquote

from torch import Tensor

from core.atomic import TEMPORARY, remove_stale, write_atomically
from core.claim import FORMAT, claim, read_claim, read_object
from core.errors import GroundingError

LONGEST_NAME = 200  # bytes of an encoded id; file systems allow 255 with our endings
Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Record:
    """What a record's file holds: tensors by name, and the rest as JSON values."""

    tensors: Mapping[str, Tensor]
    about: dict[str, Any]


class RecordFolder(Generic[Kept]):
    """The records of one run under one configuration, each a `Record`; a subclass packs something else into one.

    Several processes may write to one folder as long as each id is written by one of them.
    """

    kind: ClassVar[str] = "record"  # what the records are, and the name of their JSON in the file

    def __init__(self, directory: str | Path, config: Mapping[str, Any] | None = None, *, overwrite: bool = False):
        """Open a run, or create it.

        Args:
            directory: the run's directory; made if absent.
            config: everything that determines the results (model, revision, prompt, options, seed), as JSON values; see
                `core.provenance.run_config`. None opens an existing run as it is.
            overwrite: drop the records of another configuration.

        Raises:
            GroundingError: no run to open, a run with another configuration, or a configuration that is not JSON.
        """
        self.directory = Path(directory)
        self._records = self.directory / "records"
        about = self.directory / "run.json"
        if config is not None:
            drop = self._records if overwrite else None
            self.provenance = claim(about, config, drop=drop, advice="overwrite=True to drop its records")
        elif about.is_file():
            self.provenance = read_claim(about)
        else:
            raise GroundingError(
                f"no run at {self.directory} (run.json is missing); give the configuration to start one"
            )
        if self.provenance.get("format") != FORMAT:
            raise GroundingError(
                f"the records in {self.directory} are of format {self.provenance.get('format')}, and this version "
                f"reads {FORMAT}; make them again in another folder"
            )
        self.config: dict[str, Any] = self.provenance["config"]
        self._records.mkdir(exist_ok=True)
        remove_stale(self._records)
        remove_stale(self.directory)

    def pack(self, kept: Kept) -> Record:
        """What the file of a record holds."""
        return kept

    def unpack(self, record: Record) -> Kept:
        """What `pack` was given."""
        return record

    def done(self, *, errors: bool = True) -> set[str]:
        """Ids that have a record; without those that hold an error if `errors` is False."""
        return set(self._ids(".safetensors")) | (set(self.errors()) if errors else set())

    def has(self, id: str) -> bool:
        """Whether an id has a record that is no error."""
        return self._path(id, ".safetensors").is_file()

    def errors(self) -> dict[str, str]:
        """Message of every id that has an error instead of a record."""
        whole = set(self._ids(".safetensors"))
        failed = [id for id in self._ids(".json") if id not in whole]
        found = {id: read_object(self._path(id, ".json"), advice="delete the file and run again") for id in failed}
        return {id: content.get("error", "no reason is kept") for id, content in found.items()}

    def write(self, id: str, kept: Kept) -> None:
        """Keep a record, on disk when this returns; it replaces an earlier one of the same id.

        Raises:
            GroundingError: an id that makes no file name.
        """
        from safetensors.torch import save

        record = self.pack(kept)
        tensors = {name: tensor.contiguous() for name, tensor in record.tensors.items()}
        about = json.dumps({**record.about, "id": id})
        write_atomically(self._path(id, ".safetensors"), save(tensors, {self.kind: about}))
        self._path(id, ".json").unlink(missing_ok=True)

    def write_error(self, id: str, message: str) -> None:
        """Keep the reason why an id has no record."""
        write_atomically(self._path(id, ".json"), json.dumps({"id": id, "error": message}).encode())

    def read(self, id: str) -> Kept:
        """The record of an id.

        Raises:
            GroundingError: no record, an error record, or a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(id, ".safetensors")
        if not path.is_file():
            message = self.errors().get(id)
            why = f"it has an error instead: {message}" if message else f"the run has {len(self)} others"
            raise GroundingError(f"no record of {id!r} in {self.directory}; {why}")
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads(file.metadata()[self.kind])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise GroundingError(f"the record {path} is damaged ({error}); delete the file and run again") from error
        return self.unpack(Record(tensors, about))

    def ids(self) -> list[str]:
        """Ids of all records, sorted."""
        return sorted(self._ids(".safetensors"))

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[tuple[str, Kept]]:
        """(id, record) in the order of ids, read one at a time."""
        return ((id, self.read(id)) for id in self.ids())

    def _ids(self, ending: str) -> list[str]:
        files = self._records.glob(f"*{ending}")
        return [unquote(file.name.removesuffix(ending)) for file in files if TEMPORARY not in file.name]

    def _path(self, id: str, ending: str) -> Path:
        name = quote(id, safe=" ,;=+@()[]{}!'").replace(".", "%2E")
        if not 0 < len(name) <= LONGEST_NAME:
            raise GroundingError(
                f"a record's id must encode to 1..{LONGEST_NAME} characters; {id[:60]!r} has {len(name)}"
            )
        return self._records / f"{name}{ending}"
