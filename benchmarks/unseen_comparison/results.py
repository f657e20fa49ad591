"""The result file: read at the start, written after every row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import write_result
from benchmarks.unseen_comparison.claims import judge
from benchmarks.unseen_comparison.row import METHODS, Case, Row
from benchmarks.unseen_networks import NETWORKS, Network
from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object, to_json


@dataclass(eq=False)
class Results:
    path: Path
    machine: Mapping[str, str]
    networks: dict[str, dict[str, str]] = field(default_factory=dict)  # what is measured on what
    rows: dict[Case, Row] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, machine: Mapping[str, str]) -> Results:
        """Empty where there is no such file. Raises DataError for one that is no result file."""
        results = cls(path, machine)
        if path.exists():
            held = parse_object(path.read_text(encoding="utf-8"), str(path), DataError)
            for value in held.get("rows", []):
                row = from_json(Row, value, f"{path}:", DataError)
                results.rows[row.case] = row
            results.networks = dict(held.get("networks", {}))
        return results

    def describe(self, network: Network) -> None:
        self.networks[network.name] = {
            "metric": network.metric_name,
            "calibration": network.calibration,
            "evaluation": network.evaluation,
            "scope": network.scope,
        }

    def add(self, row: Row) -> None:
        """In place of an earlier one of the same case; written at once."""
        self.rows[row.case] = row
        rows = self.of(self.rows)
        body = {
            "networks": {name: self.networks[name] for name in NETWORKS if name in self.networks},
            "verdicts": [to_json(verdict) for verdict in judge(rows)],
            "rows": [to_json(row) for row in rows],
        }
        json.dumps(body, allow_nan=False)  # before the file is replaced
        write_result(self.path, self.machine, body)

    def of(self, cases: Iterable[Case]) -> list[Row]:
        """Those that are there, in the order of the tables."""
        order = list(NETWORKS)
        found = [self.rows[case] for case in cases if case in self.rows]
        return sorted(
            found, key=lambda r: (order.index(r.network), -r.budget, METHODS.index(r.method))
        )
