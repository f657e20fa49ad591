"""stages.json, the ledger of a run: its finished stages, their keys, files and facts.

A stage's key is the sha256 of everything that its outputs depend on, including the key of the
stage before it. A finished stage with the same key is reused. Otherwise the stage and all stages
after it are run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from lrcompress import __version__
from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object, to_json
from lrcompress.messages import shown
from lrcompress.network.identity import ModelIdentity, check_identity

SCHEMA_VERSION = 1
START_AGAIN = "choose another output folder, or --force to start again"


@dataclass(frozen=True)
class StageRecord:
    key: str
    files: Mapping[str, str]  # path in the run folder → sha256
    facts: Mapping[str, Any]  # results of the stage as JSON values, for the report


@dataclass(frozen=True)
class Ledger:
    model: str  # as the user wrote it
    model_fingerprint: str
    identity: ModelIdentity | None = None  # None in a ledger of an older version
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)  # files of stages that were forgotten
    schema_version: int = SCHEMA_VERSION

    def with_stage(self, name: str, record: StageRecord) -> Ledger:
        before = self.stages[name].files if name in self.stages else {}
        replaced = {**self.replaced, **before}
        replaced = {file: d for file, d in replaced.items() if file not in record.files}
        return replace(self, stages={**self.stages, name: record}, replaced=replaced)

    def before(self, name: str) -> Ledger:
        """Return a ledger without the stage `name` and all stages recorded after it."""
        return self._only(list(takewhile(lambda other: other != name, self.stages)))

    def emptied(self) -> Ledger:
        """Return a ledger without any stage."""
        return self._only(())

    def _only(self, kept: Collection[str]) -> Ledger:
        stages = {name: record for name, record in self.stages.items() if name in kept}
        files = {name for record in stages.values() for name in record.files}
        gone = {name: d for record in self.stages.values() for name, d in record.files.items()}
        replaced = {name: d for name, d in {**self.replaced, **gone}.items() if name not in files}
        return replace(self, stages=stages, replaced=replaced)

    def to_json(self) -> str:
        return json.dumps(to_json(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Ledger:
        """Parse a ledger; raise DataError if the text is not a ledger of this version.

        Users do not edit a ledger, so every message advises to start again.
        """
        try:
            data = parse_object(text, where, DataError)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {START_AGAIN}") from cause
        if data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{where}: written by another version; {START_AGAIN}")
        try:
            ledger = from_json(cls, {"stages": None, **data}, where, DataError)
            if ledger.identity is not None:
                check_identity(ledger.identity, "identity", DataError)
            for files in (ledger.replaced, *(record.files for record in ledger.stages.values())):
                _check_inside(files)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {START_AGAIN}") from cause
        return ledger


def _check_inside(files: Iterable[str]) -> None:
    """Raise DataError for a path that leads out of the folder."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise DataError(f"{shown(name)} is outside of the folder")


def stage_key(name: str, upstream: str, inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of a stage's name, inputs, upstream key and the code version."""
    parts = {"stage": name, "upstream": upstream, "version": __version__, "inputs": to_json(inputs)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
