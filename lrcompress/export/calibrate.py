"""Measure what structures cost in time: each against the dense layer of its shape, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.export.bench import BenchSettings, BenchTarget, bench
from lrcompress.export.forms import forms_of, use_form_
from lrcompress.export.onnx import ExportOptions, export_onnx
from lrcompress.export.session import ProviderName
from lrcompress.layers import LayerSpec, describe
from lrcompress.planning.latency import LatencyTable, Measurement
from lrcompress.progress import SILENT, Progress
from lrcompress.structures import STRUCTURES, Structure

SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (2048, 2048))  # out, in features
ROWS = (1, 16, 128, 512)


@dataclass(frozen=True)
class CalibrationSettings:
    provider: ProviderName = "cpu"
    structures: tuple[str, ...] = tuple(name for name in STRUCTURES if name != "dense")
    shapes: tuple[tuple[int, int], ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    runs: int = 30
    threads: int | None = 1


DEFAULTS = CalibrationSettings()


class OneLayer(nn.Module):
    """(rows, in) -> (rows, out); a module around the layer, so that it can be replaced."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Linear(in_features, out_features)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.layer(rows)
        return out


@dataclass(frozen=True)
class _Candidate:
    structure: Structure
    form: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.structure} {self.form}"


def calibrate_latency(
    settings: CalibrationSettings = DEFAULTS, progress: Progress = SILENT
) -> LatencyTable:
    """Random weights and inputs: time depends on neither.

    Raises:
        ProviderUnavailable: the provider cannot run here.
    """
    found: list[Measurement] = []
    for shape in settings.shapes:
        spec = describe(OneLayer(*shape)).layers[0]
        structures = list(structures_to_time(spec, settings.structures))
        found += time_structures(structures, shape, settings, progress)
    return LatencyTable(tuple(found))


def time_structures(
    structures: Sequence[Structure],
    shape: tuple[int, int],
    settings: CalibrationSettings = DEFAULTS,
    progress: Progress = SILENT,
) -> list[Measurement]:
    """Each structure in each of its forms in place of a linear layer of `shape` (out, in).

    Raises:
        ProviderUnavailable: the provider cannot run here.
    """
    torch.manual_seed(0)
    dense = OneLayer(*shape).eval()
    spec = describe(dense).layers[0]
    example = {"rows": torch.randn(8, spec.in_features)}
    as_it_is = ExportOptions(forms=None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(dense, example, folder / "dense.onnx", as_it_is)
        candidates: list[_Candidate] = []
        with progress.stage(f"export {shape[0]} x {shape[1]}", len(structures)) as step:
            for structure in structures:
                module = OneLayer(*shape).eval()
                module.layer = built(structure, module.layer, spec)
                for form in forms_of(module.layer) or ("",):
                    if form:
                        use_form_(module.layer, form)
                    path = folder / f"{len(candidates)}.onnx"
                    export_onnx(module, example, path, as_it_is)
                    candidates.append(_Candidate(structure, form, path))
                step.advance()
        targets = [
            BenchTarget("dense", folder / "dense.onnx"),
            *(BenchTarget(one.name, one.path) for one in candidates),
        ]
        report = bench(
            targets,
            BenchSettings(
                settings.rows,
                provider=settings.provider,
                runs=settings.runs,
                threads=settings.threads,
                measure_memory=False,
            ),
            progress=progress,
        )
    ratios = {(ratio.target, ratio.batch): ratio.latency_ratio for ratio in report.ratios}
    return [
        Measurement(
            provider=settings.provider,
            structure=one.structure.type_name,
            blocks=getattr(one.structure, "blocks", 0),
            form=one.form,
            out_features=spec.out_features,
            in_features=spec.in_features,
            kept=one.structure.weight_params(spec) / spec.weight_params,
            rows=rows,
            ratio=ratios[one.name, rows],
        )
        for one in candidates
        for rows in settings.rows
    ]


def structures_to_time(spec: LayerSpec, names: Sequence[str]) -> Iterator[Structure]:
    """Those that a plan may choose: the families' sizes, and low rank at about the same shares."""
    for name in names:
        if name == "low_rank":
            low_rank = STRUCTURES[name]
            for share in (0.25, 0.5, 0.75):
                yield low_rank(rank=max(1, round(share * spec.break_even_rank)))  # type: ignore[call-arg]
            continue
        for family in STRUCTURES[name].families(spec):
            yield from family[:: max(1, len(family) // 3)]


def built(structure: Structure, layer: nn.Module, spec: LayerSpec) -> nn.Module:
    """The structure's module, with random factors of order one over the layer."""
    try:
        structure.check(spec)
    except PlanError as error:  # families() promises what fits
        raise AssertionError(str(error)) from error
    factors = {
        name: torch.randn(value.shape) / max(1, value.shape[-1]) ** 0.5
        for name, value in structure.empty_factors(spec).items()
    }
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return structure.build(layer, spec, factors, bias.detach())
