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
from pathlib import PurePosixPath
from typing import Any

from lrcompress import __version__
from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object, to_json
from lrcompress.messages import shown
from lrcompress.network.identity import ModelIdentity, check_identity

SCHEMA_VERSION = 1
BEGIN_ANEW = "choose another output folder, or --force to begin anew"


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
        names = list(self.stages)
        kept = names[: names.index(name)] if name in names else names
        return self._only(kept)

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

        Users do not edit a ledger, so every message advises to begin anew.
        """
        try:
            data = parse_object(text, where, DataError)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {BEGIN_ANEW}") from cause
        if data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{where}: written by another version; {BEGIN_ANEW}")
        try:
            stages = data.pop("stages", None)
            records = {name: _record(value, name) for name, value in _object(stages).items()}
            head = from_json(cls, data, where, DataError)
            if head.identity is not None:
                check_identity(head.identity, "identity", DataError)
            for files in (head.replaced, *(record.files for record in records.values())):
                _check_inside(files)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {BEGIN_ANEW}") from cause
        return replace(head, stages=records)


def _check_inside(files: Iterable[str]) -> None:
    """Raise DataError for a path that leads out of the folder."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise DataError(f"{shown(name)} lies outside of the folder")


def _record(value: object, where: str) -> StageRecord:
    fields = _object(value)
    key = from_json(str, fields.get("key"), where, DataError)
    files = from_json(dict[str, str], fields.get("files"), where, DataError)
    return StageRecord(key, files, _object(fields.get("facts")))


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"must be an object {{...}}, not {shown(value)}")
    return value


def stage_key(name: str, upstream: str, inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of a stage's name, inputs, upstream key and the code version."""
    parts = {"stage": name, "upstream": upstream, "version": __version__, "inputs": to_json(inputs)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
