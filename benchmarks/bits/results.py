"""The result file: read at the start, written after every cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bits.comparison import Comparison, compare
from benchmarks.bits.networks import SUBJECTS
from benchmarks.bits.row import Cell, Row
from benchmarks.bits.subject import DenseNote
from benchmarks.machine import write_result
from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object, to_json


@dataclass(eq=False)
class Results:
    path: Path
    machine: Mapping[str, str]
    networks: dict[str, DenseNote] = field(default_factory=dict)
    rows: dict[Cell, Row] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)  # network → method → why

    @classmethod
    def read(cls, path: Path, machine: Mapping[str, str]) -> Results:
        """Empty where there is no such file. Raises DataError for one that is no result file."""
        results = cls(path, machine)
        if path.exists():
            held = parse_object(path.read_text(encoding="utf-8"), str(path), DataError)
            for value in held.get("rows", []):
                row = from_json(Row, value, f"{path}:", DataError)
                results.rows[row.cell] = row
            for name, value in held.get("networks", {}).items():
                results.networks[name] = from_json(DenseNote, value, f"{path}:", DataError)
            results.left_out = dict(held.get("left_out", {}))
        return results

    def add(self, row: Row) -> None:
        """In place of an earlier one of the same cell; written at once."""
        self.rows[row.cell] = row
        self.write()

    def leave_out(self, network: str, method: str, reason: str) -> None:
        """Remember that a method finds nothing to change in a network."""
        self.left_out.setdefault(network, {})[method] = reason
        self.write()

    def write(self) -> None:
        order = list(SUBJECTS)
        names = sorted(self.networks, key=order.index)
        body: dict[str, Any] = {
            "networks": {name: asdict(self.networks[name]) for name in names},
            "left_out": self.left_out,
            "comparisons": [to_json(one) for name in names for one in self.comparisons(name)],
            "rows": [to_json(row) for name in names for row in self.of(name)],
        }
        json.dumps(body, allow_nan=False)  # before the file is replaced
        write_result(self.path, self.machine, body)

    def of(self, network: str) -> list[Row]:
        """The rows of a network, in the order in which they were made."""
        return [row for row in self.rows.values() if row.network == network]

    def comparisons(self, network: str) -> list[Comparison]:
        note = self.networks[network]
        return list(compare(self.of(network), note.kind, note.evaluations[0]))
