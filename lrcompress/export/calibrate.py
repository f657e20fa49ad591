"""Measure the latency of structures and formats relative to the dense layer of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.calibrate_formats import (
    TIMED_FORMATS,
    FormatTiming,
    ranks_to_time,
    time_formats,
)
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.forms import forms_of, use_form_
from lrcompress.export.session import ProviderName
from lrcompress.hardware import memory_bytes
from lrcompress.layers import LayerSpec
from lrcompress.messages import listed
from lrcompress.planning.latency import LatencyTable, Measurement
from lrcompress.progress import SILENT, Progress
from lrcompress.scratch import scratch_folder
from lrcompress.structures import STRUCTURES, Structure

Shape = tuple[int, int]  # out, in features

SHAPES: tuple[Shape, ...] = ((384, 384), (1536, 384), (384, 1536), (768, 768), (2048, 2048))
ROWS = (1, 16, 128, 1024)
TIMED = tuple(name for name, it in STRUCTURES.items() if "linear" in it.kinds and name != "dense")
_FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class CalibrationSettings:
    provider: ProviderName = "cpu"
    structures: tuple[str, ...] = TIMED
    shapes: tuple[Shape, ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    runs: int = 30
    threads: int | None = 1
    formats: tuple[str, ...] = TIMED_FORMATS  # of dense and low-rank layers, besides float32

    @property
    def of_formats(self) -> FormatTiming:
        names = ("dense", *self.structures) if self.formats else self.structures
        return FormatTiming(self.provider, names, self.formats, self.rows, self.runs, self.threads)


DEFAULTS = CalibrationSettings()


class OneLayer(nn.Module):
    """A wrapper around one replaceable linear layer: (rows, in) -> (rows, out)."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Linear(in_features, out_features)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.layer(rows)
        return out


def calibrate_latency(
    settings: CalibrationSettings = DEFAULTS, progress: Progress = SILENT
) -> LatencyTable:
    """Measure the latency of structures with random weights and inputs: time depends on neither.

    Structures that cannot replace a linear layer of these sizes are skipped; see `not_timed`.

    Raises:
        DataError: no structure can replace one of the layers, or a layer does not fit in memory.
        ProviderUnavailable: the provider cannot run here.
    """
    _check_all(settings)
    found: list[Measurement] = []
    for shape in settings.shapes:
        spec = linear_layer(shape)
        others = [name for name in settings.structures if name != "low_rank"]
        if structures := structures_to_time(spec, others):
            found += time_structures(structures, shape, settings, progress)
        found += time_formats(spec, settings.of_formats, progress)
    return LatencyTable(tuple(found))


def time_structures(
    structures: Sequence[Structure],
    shape: Shape,
    settings: CalibrationSettings = DEFAULTS,
    progress: Progress = SILENT,
) -> list[Measurement]:
    """Time each structure, in each of its forms, in place of a linear layer of `shape` (out, in).

    Raises:
        PlanError: a structure does not fit the layer.
        ProviderUnavailable: the provider cannot run here.
    """
    torch.manual_seed(0)
    dense = OneLayer(*shape).eval()
    spec = linear_layer(shape)
    example = {"rows": torch.randn(8, spec.in_features)}
    options = ExportOptions(forms=None)
    with scratch_folder() as folder:
        targets = [BenchTarget("dense", folder / "dense.onnx")]
        export_onnx(dense, example, targets[0].path, options)
        candidates: list[tuple[str, Structure, str]] = []  # name of the target, structure, form
        with progress.stage(f"export {shape[0]} x {shape[1]}", len(structures)) as step:
            for structure in structures:
                module = OneLayer(*shape).eval()
                module.layer = _built(structure, module.layer, spec)
                for form in forms_of(module.layer) or ("",):
                    if form:
                        use_form_(module.layer, form)
                    target = BenchTarget(f"{structure} {form}", folder / f"{len(targets)}.onnx")
                    export_onnx(module, example, target.path, options)
                    targets.append(target)
                    candidates.append((target.name, structure, form))
                step.advance()
        report = bench(
            targets,
            BenchSettings(
                settings.rows,
                provider=settings.provider,
                runs=settings.runs,
                threads=settings.threads,
                measure_memory=False,
                cpu_time=True,
            ),
            progress=progress,
        )
    ratios = {(ratio.target, ratio.batch): ratio.latency_ratio for ratio in report.ratios}
    return [
        Measurement(
            provider=settings.provider,
            structure=structure.type_name,
            blocks=getattr(structure, "blocks", 0),
            form=form,
            out_features=spec.out_features,
            in_features=spec.in_features,
            kept=structure.weight_params(spec) / spec.weight_params,
            rows=rows,
            ratio=ratios[name, rows],
        )
        for name, structure, form in candidates
        for rows in settings.rows
    ]


def _built(structure: Structure, layer: nn.Module, spec: LayerSpec) -> nn.Module:
    """Return the structure's module in place of the layer, with random factors."""
    structure.check(spec)
    factors = {
        name: torch.randn(value.shape) / max(1, value.shape[-1]) ** 0.5
        for name, value in structure.empty_factors(spec).items()
    }
    bias = layer.bias
    assert isinstance(bias, Tensor)
    return structure.build(layer, spec, factors, bias.detach())


def linear_layer(shape: Shape) -> LayerSpec:
    """Return the spec of the dense layer that structures are timed against."""
    return LayerSpec("layer", "linear", *shape, groups=1, bias=True)


def structures_to_time(spec: LayerSpec, names: Sequence[str]) -> tuple[Structure, ...]:
    """Return structures that a plan may choose: sizes from families(), or some ranks."""
    found: list[Structure] = []
    for name in names:
        if name == "low_rank":
            found += ranks_to_time(spec)
            continue
        for family in STRUCTURES[name].families(spec):
            found += family[:: max(1, len(family) // 3)]
    smaller = (it for it in found if it.weight_params(spec) < spec.weight_params)
    return tuple(dict.fromkeys(smaller))  # in small layers several shares give the same rank


def not_timed(names: Sequence[str], shapes: Sequence[Shape]) -> dict[str, str]:
    """Return the named structures that can replace none of the layers, each with the reason."""
    specs = [linear_layer(shape) for shape in shapes]
    reasons = {}
    for name in names:
        kinds = STRUCTURES[name].kinds
        if "linear" not in kinds:
            reasons[name] = f"it replaces {', '.join(sorted(kinds))}, not linear layers"
        elif not any(structures_to_time(spec, (name,)) for spec in specs):
            reasons[name] = "no layer of these sizes is large enough for it"
    return reasons


def _check_all(settings: CalibrationSettings) -> None:
    """Raise DataError if a layer does not fit in memory, or no structure can replace it."""
    names = settings.structures
    for shape in settings.shapes:
        spec = linear_layer(shape)
        activations = max(settings.rows, default=1) * (spec.out_features + spec.in_features)
        _check_memory(spec, spec.weight_params + activations)
        structures = structures_to_time(spec, names)
        factors = sum(structure.weight_params(spec) for structure in structures)
        _check_memory(spec, spec.weight_params + activations + factors)
        if structures:
            continue
        shown = listed([name.replace("_", "-") for name in names])
        if all("linear" not in STRUCTURES[name].kinds for name in names):
            raise DataError(
                f"calibrate-latency: {shown}: only structures of linear layers are timed; "
                "name one in --structures"
            )
        raise DataError(
            f"calibrate-latency: {spec.out_features} x {spec.in_features} is too small a layer "
            f"for {shown}; give larger --sizes"
        )


def _check_memory(spec: LayerSpec, numbers: int) -> None:
    memory = memory_bytes()
    if memory is not None and _FLOAT * numbers > memory:
        raise DataError(
            f"calibrate-latency: a layer of {spec.out_features} x {spec.in_features} takes "
            f"{_FLOAT * numbers / 1e9:,.0f} GB at least, this machine has {memory / 1e9:,.0f} GB; "
            "give smaller --sizes or fewer --rows"
        )
