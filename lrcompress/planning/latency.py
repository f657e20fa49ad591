"""Latencies of structures and number formats relative to the dense float32 layer, from a table.

Multiply-adds do not determine the time: a structure of many small products may save half of them
and still be slower than the one large product that it replaces. `lrcompress calibrate-latency`
measures. The package ships a table that was made on one machine of each kind.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from math import exp, log, log2
from pathlib import Path
from typing import Any

from lrcompress.errors import DataError, PlanError
from lrcompress.json_dataclasses import from_json, parse_object
from lrcompress.layers import LayerSpec
from lrcompress.number_formats import parse_format
from lrcompress.planning.network_time import NetworkTime
from lrcompress.planning.weight_formats import FLOAT, format_shares, name_and_block
from lrcompress.structures import Dense, LowRank, Structure, in_format

SCHEMA_VERSION = 1
SHIPPED = "latency_table.json"
NEAREST = 4  # measurements per estimate
KEPT_WEIGHT = 2.0  # doubling the share kept changes a ratio more than doubling rows or size
TOO_FAR = 6.0  # in doublings; measurements farther away are ignored


@dataclass(frozen=True)
class Measurement:
    """Latency of a structure in one form and format, relative to dense float32 in the same run."""

    provider: str
    structure: str  # type name
    blocks: int  # 0 if it has none
    form: str  # "" if there is only one
    out_features: int
    in_features: int
    kept: float  # share of the dense weight's parameters
    rows: int
    ratio: float  # of median latencies, structure / dense
    format: str = FLOAT  # of all factors, such as "int4/32"


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

        Factors in different formats take the mean of the times of each format, weighted by their
        parameters. None if nothing near was measured, and for convolutions and embeddings (not
        measured).
        """
        inner, shares = in_format(structure)[0], format_shares(structure, spec)
        plain = isinstance(inner, Dense) and [*shares] == [FLOAT]
        if plain or spec.kind not in ("linear", "transposed_linear"):
            return None
        kept = inner.weight_params(spec) / spec.weight_params
        found = {
            name: self.best_form(
                inner.type_name,
                getattr(inner, "blocks", 0),
                (spec.out_features, spec.in_features),
                max(round(kept, 3), 0.001),  # few different lookups, each cached
                provider=provider,
                rows=rows,
                format=name,
            )
            for name in shares
        }
        known = {name: one for name, one in found.items() if one is not None}
        if len(known) < len(shares):
            return None
        form = known[max(shares, key=lambda name: (shares[name], name))].form
        return Estimate(form, sum(shares[name] * known[name].ratio for name in shares))

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
        format: str = FLOAT,
    ) -> Estimate | None:
        """Return the fastest form of a structure that keeps the share `kept`, in a format.

        Time / share is averaged, since it changes little where the time follows the share. Formats
        of one name with other blocks are near.
        """
        if structure == "dense" and format == FLOAT:
            return Estimate("", 1.0)
        name, block = name_and_block(format)
        near: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for it, other in self._by_kind.get((provider, structure, blocks, name), ()):
            size = (it.out_features * it.in_features) / (shape[0] * shape[1])
            distance = (
                abs(log2(it.rows / rows))
                + abs(log2(size)) / 2
                + KEPT_WEIGHT * abs(log2(it.kept / kept))
                + abs(log2((other or 1) / (block or 1)))
            )
            if distance <= TOO_FAR:
                near[it.form].append((distance, log(it.ratio / it.kept)))
        estimates = [Estimate(form, kept * _blended(found)) for form, found in near.items()]
        return min(estimates, key=lambda e: (e.ratio, e.form), default=None)

    @cached_property
    def _by_kind(self) -> Mapping[tuple[str, str, int, str], list[tuple[Measurement, int]]]:
        """The measurements with their blocks, by provider, structure, blocks and format's name."""
        found = defaultdict(list)
        for it in self.measurements:
            name, block = name_and_block(it.format)
            found[it.provider, it.structure, it.blocks, name].append((it, block))
        return found


@dataclass(frozen=True, eq=False)
class Latencies:
    """A latency table with a fixed provider and number of rows, and the dense network's time.

    Times are given as the FLOPs per example that the dense network computes in them:
    `network_flops` in its whole time. Without a measured time, that is a layer's own FLOPs.
    """

    table: LatencyTable
    provider: str
    rows: int
    network: NetworkTime | None = None
    network_flops: float = 0.0  # per example

    def time(self, structure: Structure, spec: LayerSpec, rows_per_example: float) -> float:
        """Return the time of a layer with a structure, in FLOPs per example."""
        flops = Dense().flops_per_row(spec) * rows_per_example
        dense = (
            flops if self.network is None else self.network.share(spec.name) * self.network_flops
        )
        if isinstance(structure, Dense):
            return float(round(dense))
        if not flops:  # a lookup: the products of the structure are added to it
            return float(round(dense + structure.flops_per_row(spec) * rows_per_example))
        correction = 1.0 if self.network is None else self.network.correction
        return float(round(correction * self.ratio(structure, spec) * dense))

    def ratio(self, structure: Structure, spec: LayerSpec) -> float:
        """Return latency / latency of the dense float32 layer.

        If nothing near was measured, the ratio is that of the structure in float32, and if that
        was not measured either, the ratio of FLOPs.
        """
        inner, _ = in_format(structure)
        for one in dict.fromkeys((structure, inner)):
            best = self.table.best(one, spec, provider=self.provider, rows=self.rows)
            if best is not None:
                return best.ratio
        dense = Dense().flops_per_row(spec)
        return inner.flops_per_row(spec) / dense if dense else 1.0

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
    return _shipped_table()


@cache
def _shipped_table() -> LatencyTable:
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
        try:
            parse_format(it.format)
        except PlanError as error:
            raise DataError(f"{where}: measurements[{index}].format: {error}") from error
        for name in ("ratio", "kept", "rows", "out_features", "in_features"):
            if getattr(it, name) <= 0:
                raise DataError(
                    f"{where}: measurements[{index}].{name}: must be above zero; calibrate again"
                )
    return table


def table_to_json(table: LatencyTable, machine: dict[str, Any]) -> str:
    """Format a table, one measurement per line; `machine` tells readers where it was made."""
    lines = ["  " + json.dumps(_entry(it)) for it in table.measurements]
    head = json.dumps({"schema_version": table.schema_version, "machine": machine}, indent=1)
    return head.removesuffix("\n}") + ',\n "measurements": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def _entry(it: Measurement) -> dict[str, Any]:
    entry = {**it.__dict__, "kept": round(it.kept, 4), "ratio": round(it.ratio, 4)}
    return entry if it.format != FLOAT else {k: v for k, v in entry.items() if k != "format"}
