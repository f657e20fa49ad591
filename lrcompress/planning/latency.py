"""What structures cost in time: latencies over the dense layer's, measured and looked up.

Multiply-adds are not time: a structure of many small products may save half of them and still be
slower than the one large product that it replaces. `lrcompress calibrate-latency` measures; a
table made on one machine of each kind ships with the package.
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
NEAREST = 4  # measurements that an estimate is made of
KEPT_WEIGHT = 2.0  # a doubling of the share kept changes a ratio more than one of rows or size
TOO_FAR = 6.0  # doublings: beyond it a measurement says nothing


@dataclass(frozen=True)
class Measurement:
    """One structure in one form, against the dense layer of the same shape in the same run."""

    provider: str
    structure: str  # its type's name
    blocks: int  # 0 where it has none
    form: str  # "" where there is only one
    out_features: int
    in_features: int
    kept: float  # share of the dense weight's parameters
    rows: int
    ratio: float  # of median latencies, structure over dense


@dataclass(frozen=True)
class Estimate:
    form: str
    ratio: float


@dataclass(frozen=True, eq=False)  # so that lookups can be remembered
class LatencyTable:
    measurements: tuple[Measurement, ...]
    schema_version: int = SCHEMA_VERSION

    def best(
        self, structure: Structure, spec: LayerSpec, *, provider: str, rows: int
    ) -> Estimate | None:
        """The form that is fastest by the nearest measurements; None where nothing near was
        measured, and for convolutions and embeddings, of which nothing is."""
        if isinstance(structure, Dense) or spec.kind not in ("linear", "transposed_linear"):
            return None
        kept = structure.weight_params(spec) / spec.weight_params
        return self.best_form(
            structure.type_name,
            getattr(structure, "blocks", 0),
            (spec.out_features, spec.in_features),
            max(round(kept, 3), 0.001),  # few different questions, each answered once
            provider=provider,
            rows=rows,
        )

    @cache  # noqa: B019  # a table lives as long as its questions
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
        """Of a structure that keeps the share `kept`. What is blended is the time over that share,
        which changes little where the time itself follows it."""
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
    """The table, at one provider and number of rows."""

    table: LatencyTable
    provider: str
    rows: int

    def ratio(self, structure: Structure, spec: LayerSpec) -> float:
        """Of the layer's latency to the dense one's; of FLOPs where nothing near was measured."""
        best = self.table.best(structure, spec, provider=self.provider, rows=self.rows)
        if best is not None:
            return best.ratio
        dense = Dense().flops_per_row(spec)
        return structure.flops_per_row(spec) / dense if dense else 1.0

    def is_slower(self, structure: Structure, spec: LayerSpec) -> bool:
        """Than the dense layer, even in its best form; False where nothing near was measured."""
        if isinstance(structure, LowRank):
            return False  # two smaller products of the same kind
        best = self.table.best(structure, spec, provider=self.provider, rows=self.rows)
        return best is not None and best.ratio >= 1


def _blended(found: list[tuple[float, float]]) -> float:
    """Mean of the logarithms of the nearest, weighted by the inverse distance."""
    nearest = sorted(found)[:NEAREST]
    weights = [1 / (distance + 0.05) ** 2 for distance, _ in nearest]
    total = sum(w * value for w, (_, value) in zip(weights, nearest, strict=True))
    return exp(total / sum(weights))


def latency_table(path: str = "") -> LatencyTable:
    """The table in a file of calibrate-latency, or the package's own.

    Raises:
        DataError: the file is no table, naming the field.
    """
    return load_table(Path(path)) if path else shipped_table()


def table_digest(path: str) -> str:
    """sha256 of a file's text; "" for the package's own, which its version tells.

    Raises:
        DataError: the file cannot be read.
    """
    return hashlib.sha256(_text(Path(path)).encode()).hexdigest() if path else ""


def shipped_table() -> LatencyTable:
    """The package's own measurements."""
    text = files("lrcompress.planning").joinpath(SHIPPED).read_text(encoding="utf-8")
    return table_from_json(text, SHIPPED)


def load_table(path: Path) -> LatencyTable:
    """Raises DataError, naming the field, for what is no table."""
    return table_from_json(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read; make it with calibrate-latency") from error


def table_from_json(text: str, where: str) -> LatencyTable:
    """Raises DataError, naming the field."""
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
    """One line a measurement; `machine` says where they come from, for people."""
    lines = [
        "  " + json.dumps({**it.__dict__, "kept": round(it.kept, 4), "ratio": round(it.ratio, 4)})
        for it in table.measurements
    ]
    head = json.dumps({"schema_version": table.schema_version, "machine": machine}, indent=1)
    return head.removesuffix("\n}") + ',\n "measurements": [\n' + ",\n".join(lines) + "\n ]\n}\n"
