"""stages.json: which stages of a run are finished, from what, and what they left behind.

A stage's key is the sha256 of everything that its outputs depend on, the key of the stage before
it among them. A finished stage of the same key is taken over; any other is done again, and all
that follow with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lrcompress import __version__
from lrcompress.errors import DataError
from lrcompress.records import from_json, parse_object, to_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageRecord:
    key: str
    files: Mapping[str, str]  # path in the run folder → sha256
    facts: Mapping[str, Any]  # what the stage found: JSON values, for its report


@dataclass(frozen=True)
class Ledger:
    model: str  # as the user wrote it
    model_fingerprint: str
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def with_stage(self, name: str, record: StageRecord) -> Ledger:
        return Ledger(self.model, self.model_fingerprint, {**self.stages, name: record})

    def before(self, name: str) -> Ledger:
        """Without the stage `name` and all that were recorded after it."""
        kept: dict[str, StageRecord] = {}
        for other, record in self.stages.items():
            if other == name:
                break
            kept[other] = record
        return Ledger(self.model, self.model_fingerprint, kept)

    def to_json(self) -> str:
        return json.dumps(to_json(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Ledger:
        """Raises DataError if the text is no ledger of this version."""
        data = parse_object(text, where, DataError)
        stages = data.pop("stages", None)
        if data.get("schema_version") != SCHEMA_VERSION or not isinstance(stages, dict):
            raise DataError(
                f"{where}: written by another version; choose another output folder, or --force"
            )
        head = from_json(cls, data, where, DataError)
        records = {name: _record(value, f"{where}: {name}") for name, value in stages.items()}
        return Ledger(head.model, head.model_fingerprint, records)


def _record(value: Any, where: str) -> StageRecord:
    if not isinstance(value, dict) or not isinstance(value.get("facts"), dict):
        raise DataError(f"{where}: not a stage's record; choose another output folder, or --force")
    key = from_json(str, value.get("key"), f"{where}.key", DataError)
    files = from_json(dict[str, str], value.get("files"), f"{where}.files", DataError)
    return StageRecord(key, files, value["facts"])


def stage_key(name: str, upstream: str, inputs: Mapping[str, Any]) -> str:
    """sha256 of a stage's inputs, of the key it builds on, and of the code's version."""
    parts = {"stage": name, "upstream": upstream, "version": __version__, "inputs": to_json(inputs)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
