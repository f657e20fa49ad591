"""Latencies of structures relative to the dense layer, looked up in a table of measurements.

Multiply-adds do not determine the time: a structure of many small products may save half of them
and still be slower than the one large product that it replaces. `lrcompress calibrate-latency`
measures. The package ships a table that was made on one machine of each kind.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import exp, log, log2
from pathlib import Path
from typing import Any

from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object
from lrcompress.layers import LayerSpec
from lrcompress.structures import Dense, LowRank, Structure

SCHEMA_VERSION = 1
SHIPPED = "latency_table.json"
NEAREST = 4  # measurements per estimate
KEPT_WEIGHT = 2.0  # doubling the share kept changes a ratio more than doubling rows or size
TOO_FAR = 6.0  # in doublings; measurements farther away are ignored


@dataclass(frozen=True)
class Measurement:
    """Latency of one structure in one form, relative to the dense layer in the same run."""

    provider: str
    structure: str  # type name
    blocks: int  # 0 if it has none
    form: str  # "" if there is only one
    out_features: int
    in_features: int
    kept: float  # share of the dense weight's parameters
    rows: int
    ratio: float  # of median latencies, structure / dense


@dataclass(frozen=True)
class Estimate:
    form: str
    ratio: float


@dataclass(frozen=True, eq=False)  # hashed by identity, to cache lookups
class LatencyTable:
    measurements: tuple[Measurement, ...]
    schema_version: int = SCHEMA_VERSION

    def best(
        self, structure: Structure, spec: LayerSpec, *, provider: str, rows: int
    ) -> Estimate | None:
        """Return the fastest form, estimated from the nearest measurements.

        None if nothing near was measured, and for convolutions and embeddings (not measured).
        """
        if isinstance(structure, Dense) or spec.kind not in ("linear", "transposed_linear"):
            return None
        kept = structure.weight_params(spec) / spec.weight_params
        return self.best_form(
            structure.type_name,
            getattr(structure, "blocks", 0),
            (spec.out_features, spec.in_features),
            max(round(kept, 3), 0.001),  # few different lookups, each cached
            provider=provider,
            rows=rows,
        )

    @cache  # noqa: B019  # a table lives as long as its lookups
    def best_form(
        self,
        structure: str,
        blocks: int,
        shape: tuple[int, int],
        kept: float,
        *,
        provider: str,
        rows: int,
    ) -> Estimate | None:
        """Return the fastest form of a structure that keeps the share `kept`.

        Time / share is averaged, since it changes little where the time follows the share.
        """
        near: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for it in self.measurements:
            if (it.provider, it.structure, it.blocks) == (provider, structure, blocks):
                size = (it.out_features * it.in_features) / (shape[0] * shape[1])
                distance = (
                    abs(log2(it.rows / rows))
                    + abs(log2(size)) / 2
                    + KEPT_WEIGHT * abs(log2(it.kept / kept))
                )
                if distance <= TOO_FAR:
                    near[it.form].append((distance, log(it.ratio / it.kept)))
        estimates = [Estimate(form, kept * _blended(found)) for form, found in near.items()]
        return min(estimates, key=lambda e: (e.ratio, e.form), default=None)


@dataclass(frozen=True, eq=False)
class Latencies:
    """A latency table with a fixed provider and number of rows."""

    table: LatencyTable
    provider: str
    rows: int

    def ratio(self, structure: Structure, spec: LayerSpec) -> float:
        """Return latency / dense latency, or the ratio of FLOPs if nothing near was measured."""
        best = self.table.best(structure, spec, provider=self.provider, rows=self.rows)
        if best is not None:
            return best.ratio
        dense = Dense().flops_per_row(spec)
        return structure.flops_per_row(spec) / dense if dense else 1.0

    def is_slower(self, structure: Structure, spec: LayerSpec) -> bool:
        """Whether even its best form is slower than dense; False if nothing near was measured."""
        if isinstance(structure, LowRank):
            return False  # two smaller products of the same kind
        best = self.table.best(structure, spec, provider=self.provider, rows=self.rows)
        return best is not None and best.ratio >= 1


def _blended(found: list[tuple[float, float]]) -> float:
    """Return the geometric mean of the nearest, weighted by the inverse squared distance."""
    nearest = sorted(found)[:NEAREST]
    weights = [1 / (distance + 0.05) ** 2 for distance, _ in nearest]
    total = sum(w * value for w, (_, value) in zip(weights, nearest, strict=True))
    return exp(total / sum(weights))


def latency_table(path: str = "") -> LatencyTable:
    """Load a table from a file of calibrate-latency; without a path, the package's own.

    Raises:
        DataError: the file is not a latency table; the message names the field.
    """
    if path:
        return table_from_json(_text(Path(path)), path)
    text = files("lrcompress.planning").joinpath(SHIPPED).read_text(encoding="utf-8")
    return table_from_json(text, SHIPPED)


def table_digest(path: str) -> str:
    """Return the sha256 of a file's text; "" for the package's own, known by its version.

    Raises:
        DataError: the file cannot be read.
    """
    return hashlib.sha256(_text(Path(path)).encode()).hexdigest() if path else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read; make it with calibrate-latency") from error


def table_from_json(text: str, where: str) -> LatencyTable:
    """Parse a table. Raises DataError, naming the field."""
    value: dict[str, Any] = parse_object(text, where, DataError)
    if value.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{where}: not a latency table of this version; calibrate again")
    table = from_json(LatencyTable, value, f"{where}:", DataError)
    for index, it in enumerate(table.measurements):
        for name in ("ratio", "kept", "rows", "out_features", "in_features"):
            if getattr(it, name) <= 0:
                raise DataError(
                    f"{where}: measurements[{index}].{name}: must be above zero; calibrate again"
                )
    return table


def table_to_json(table: LatencyTable, machine: dict[str, Any]) -> str:
    """Format a table, one measurement per line; `machine` tells readers where it was made."""
    lines = [
        "  " + json.dumps({**it.__dict__, "kept": round(it.kept, 4), "ratio": round(it.ratio, 4)})
        for it in table.measurements
    ]
    head = json.dumps({"schema_version": table.schema_version, "machine": machine}, indent=1)
    return head.removesuffix("\n}") + ',\n "measurements": [\n' + ",\n".join(lines) + "\n ]\n}\n"
