"""Measure the latency of structures, each relative to the dense layer of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.export_onnx import ExportOptions, export_onnx
from lrcompress.export.forms import forms_of, use_form_
from lrcompress.export.latency_grid import (
    Shape,
    linear_layer,
    refuse_unmeasurable,
    structures_to_time,
)
from lrcompress.export.session import ProviderName
from lrcompress.layers import LayerSpec
from lrcompress.planning.latency import LatencyTable, Measurement
from lrcompress.progress import SILENT, Progress
from lrcompress.scratch import scratch_folder
from lrcompress.structures import STRUCTURES, Structure

SHAPES: tuple[Shape, ...] = ((384, 384), (1536, 384), (384, 1536), (768, 768), (2048, 2048))
ROWS = (1, 16, 128, 512)
TIMED = tuple(name for name, it in STRUCTURES.items() if "linear" in it.kinds and name != "dense")


@dataclass(frozen=True)
class CalibrationSettings:
    provider: ProviderName = "cpu"
    structures: tuple[str, ...] = TIMED
    shapes: tuple[Shape, ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    runs: int = 30
    threads: int | None = 1


DEFAULTS = CalibrationSettings()


class OneLayer(nn.Module):
    """A wrapper around one replaceable linear layer: (rows, in) -> (rows, out)."""

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
    """Measure the latency of structures with random weights and inputs: time depends on neither.

    Structures that cannot replace a linear layer of these sizes are skipped; see `not_timed`.

    Raises:
        DataError: no structure can replace one of the layers, or a layer does not fit in memory.
        ProviderUnavailable: the provider cannot run here.
    """
    refuse_unmeasurable(settings.structures, settings.shapes, settings.rows)
    found: list[Measurement] = []
    for shape in settings.shapes:
        structures = structures_to_time(linear_layer(shape), settings.structures)
        found += time_structures(structures, shape, settings, progress)
    return LatencyTable(tuple(found))


def time_structures(
    structures: Sequence[Structure],
    shape: Shape,
    settings: CalibrationSettings = DEFAULTS,
    progress: Progress = SILENT,
) -> list[Measurement]:
    """Time each structure, in each of its forms, in place of a linear layer of `shape` (out, in).

    Raises:
        ProviderUnavailable: the provider cannot run here.
    """
    torch.manual_seed(0)
    dense = OneLayer(*shape).eval()
    spec = linear_layer(shape)
    example = {"rows": torch.randn(8, spec.in_features)}
    as_it_is = ExportOptions(forms=None)
    with scratch_folder() as folder:
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


def built(structure: Structure, layer: nn.Module, spec: LayerSpec) -> nn.Module:
    """Return the structure's module in place of the layer, with random factors."""
    try:
        structure.check(spec)
    except PlanError as error:  # families() returns only structures that fit the layer
        raise AssertionError(str(error)) from error
    factors = {
        name: torch.randn(value.shape) / max(1, value.shape[-1]) ** 0.5
        for name, value in structure.empty_factors(spec).items()
    }
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return structure.build(layer, spec, factors, bias.detach())
