"""Measure the latency of dense and low-rank layers in number formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.format_graphs import Matrix, copies_of, layer_graph
from lrcompress.export.session import ProviderName
from lrcompress.layers import LayerSpec
from lrcompress.number_formats import Format, Fp32, Int2, parse_format
from lrcompress.planning.latency import Measurement
from lrcompress.progress import SILENT, Progress
from lrcompress.scratch import scratch_folder
from lrcompress.structures import Dense, LowRank, Structure

# int2 is slower than float32 for many rows; it is timed for those who ask for it
TIMED_FORMATS = ("int8-dynamic", "int8/32", "int8/128", "int4/32", "int4/128", "int2/32")
_SHARES, _FLOAT_SHARES = (0.3, 0.75), (0.25, 0.5, 0.75)  # of the break-even rank


@dataclass(frozen=True)
class FormatTiming:
    """What to time of one layer, and how."""

    provider: ProviderName
    structures: tuple[str, ...]
    formats: tuple[str, ...]  # besides float32
    rows: tuple[int, ...]
    runs: int
    threads: int | None


@dataclass(frozen=True)
class _Candidate:
    structure: Structure
    format: Format

    @property
    def name(self) -> str:
        return f"{self.structure} {self.format}"


def time_formats(
    spec: LayerSpec, timing: FormatTiming, progress: Progress = SILENT
) -> list[Measurement]:
    """Time the layer dense and in low rank, in each format that the provider computes.

    Factors of low rank are all in one format; each int8-dynamic factor rounds its own input. The
    reference is the dense layer in float32.

    Raises:
        ProviderUnavailable: the provider cannot run here.
    """
    candidates = [one for one in _candidates(spec, timing) if one != _REFERENCE]
    if not candidates:
        return []
    copies = copies_of((spec.out_features, spec.in_features))
    with scratch_folder() as folder:
        targets = [
            _target(folder, spec, one, number, copies)
            for number, one in enumerate([_REFERENCE, *candidates])
        ]
        settings = BenchSettings(
            timing.rows,
            provider=timing.provider,
            runs=timing.runs,
            threads=timing.threads,
            measure_memory=False,
            cpu_time=True,
        )
        report = bench(targets, settings, progress=progress)
    ratios = {(ratio.target, ratio.batch): ratio.latency_ratio for ratio in report.ratios}
    return [
        Measurement(
            provider=timing.provider,
            structure=one.structure.type_name,
            blocks=0,
            form="",
            out_features=spec.out_features,
            in_features=spec.in_features,
            kept=one.structure.weight_params(spec) / spec.weight_params,
            rows=rows,
            ratio=ratios[one.name, rows],
            format=str(one.format),
        )
        for one in candidates
        for rows in timing.rows
    ]


_REFERENCE = _Candidate(Dense(), Fp32())


def _candidates(spec: LayerSpec, timing: FormatTiming) -> list[_Candidate]:
    formats = [parse_format(text) for text in timing.formats]
    usable = [kind for kind in formats if timing.provider in kind.providers]
    found: list[_Candidate] = []
    if "dense" in timing.structures:
        found += [_Candidate(Dense(), kind) for kind in usable]
    if "low_rank" in timing.structures:
        found += [_Candidate(rank, Fp32()) for rank in ranks_to_time(spec, _FLOAT_SHARES)]
        found += [
            _Candidate(rank, kind)
            for kind in usable
            if not isinstance(kind, Int2)
            for rank in ranks_to_time(spec, _SHARES)
        ]
    return found


def ranks_to_time(spec: LayerSpec, shares: Sequence[float] = _FLOAT_SHARES) -> list[LowRank]:
    """Return low rank at shares of the break-even rank; fewer if several give the same rank."""
    ranks = (LowRank(max(1, round(share * spec.break_even_rank))) for share in shares)
    return [it for it in dict.fromkeys(ranks) if it.weight_params(spec) < spec.weight_params]


def factors_of(structure: Structure, spec: LayerSpec) -> list[Matrix]:
    """Return (out, in) of the factors in the order in which they multiply the rows."""
    out, inner = spec.out_features, spec.in_features
    if isinstance(structure, LowRank):
        return [(structure.rank, inner), (out, structure.rank)]
    return [(out, inner)]


def _target(
    folder: Path, spec: LayerSpec, one: _Candidate, number: int, copies: int
) -> BenchTarget:
    import onnx

    factors = factors_of(one.structure, spec)
    path = folder / f"{number}.onnx"
    onnx.save(layer_graph(factors, [one.format] * len(factors), copies=copies), path)
    return BenchTarget(one.name, path)
