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
from typing import Any, TypeVar

from lrcompress import __version__
from lrcompress.errors import DataError
from lrcompress.records import from_json, parse_object, to_json
from lrcompress.wording import shown

Facts = TypeVar("Facts")

SCHEMA_VERSION = 1
BEGIN_ANEW = "choose another output folder, or --force to begin anew"


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
        """Raises DataError if the text is no ledger of this version.

        Nobody edits a ledger, so whatever is wrong with it, the way out is to begin anew.
        """
        try:
            data = parse_object(text, where, DataError, finite=True)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {BEGIN_ANEW}") from cause
        if data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{where}: written by another version; {BEGIN_ANEW}")
        try:
            stages = data.pop("stages", None)
            records = {name: _record(value, name) for name, value in _object(stages).items()}
            head = from_json(cls, data, where, DataError)
        except DataError as cause:
            raise DataError(f"{where}: damaged; {BEGIN_ANEW}") from cause
        return Ledger(head.model, head.model_fingerprint, records)


def read_facts(kind: type[Facts], facts: Mapping[str, Any], stage: str, field: str = "") -> Facts:
    """What a stage left behind, or one field of it.

    Raises:
        DataError: the ledger was edited, or is another version's.
    """
    where = f"stages.json: facts of {stage}"
    if field and field not in facts:
        raise DataError(f"{where}: lacks {field}; {BEGIN_ANEW}")
    try:
        return from_json(kind, to_json(facts[field] if field else facts), where, DataError)
    except DataError as cause:
        raise DataError(f"{cause}, or {BEGIN_ANEW}") from cause


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
    """sha256 of a stage's inputs, of the key it builds on, and of the code's version."""
    parts = {"stage": name, "upstream": upstream, "version": __version__, "inputs": to_json(inputs)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
