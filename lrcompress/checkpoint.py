"""Checkpoints to resume a killed run: entries of JSON values and tensors, one file for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrcompress.errors import DataError, LrcompressError
from lrcompress.fingerprint import name_digest
from lrcompress.json_dataclasses import parse_object
from lrcompress.tensor_files import write_tensors

_VALUES = "values"


@dataclass(frozen=True, eq=False)
class Entry:
    """JSON values and tensors under one name."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class CheckpointStore(Protocol):
    """A store of entries by kind and name, such as ("factors", "encoder.layer.0.output")."""

    def get(self, kind: str, name: str = "") -> Entry | None:
        """Return a stored entry; None if there is none or it cannot be read."""
        ...

    def put(self, kind: str, name: str, entry: Entry) -> None:
        """Store an entry, or replace it."""
        ...


class NoCheckpoints:
    """A store that keeps nothing: a killed run starts again."""

    def get(self, kind: str, name: str = "") -> Entry | None:
        return None

    def put(self, kind: str, name: str, entry: Entry) -> None:
        pass


class CheckpointFolder:
    """A store with one safetensors file for each entry, which is renamed into place when complete.

    The caller names the folder after everything that the entries depend on: model, data, options.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, kind: str, name: str = "") -> Entry | None:
        path = self.path(kind, name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                values = parse_object(file.metadata()[_VALUES], str(path), DataError)
                # Copies, since the rounding of matrix products depends on memory alignment
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, LrcompressError, LookupError, TypeError):
            return None  # damaged when the run was stopped: the work is done again
        return Entry(values, tensors)

    def put(self, kind: str, name: str, entry: Entry) -> None:
        """Store an entry; raise LrcompressError if the disk is full or read-only."""
        metadata = {_VALUES: json.dumps(dict(entry.values))}
        write_tensors(self.path(kind, name), entry.tensors, metadata)

    def path(self, kind: str, name: str = "") -> Path:
        """Return the file of an entry. Layer names are hashed: they may not be valid file names."""
        return self.folder / f"{kind}{f'-{name_digest(name)}' if name else ''}.safetensors"
