"""Export a network to ONNX: named inputs and outputs, free batch and sequence, one precision."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress import __version__
from lrcompress.errors import ExportError
from lrcompress.export.axes import find_axes
from lrcompress.export.axis_metadata import PREFIX, to_metadata
from lrcompress.export.axis_range import AxisRange
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.forms import choose_forms_
from lrcompress.export.forward import (
    CACHES,
    NamedForward,
    check_arguments,
    example_refused,
    named_outputs,
    parts_of,
)
from lrcompress.export.graph_axes import GraphAxes
from lrcompress.export.precision import (
    TORCH_DTYPES,
    Precision,
    cast_copy,
    computed_tables,
    float32_forward,
    mixes_dtypes,
)
from lrcompress.export.traced_axes import first_traceable, tracing_example
from lrcompress.export.tracing import quiet, trace
from lrcompress.export.weight_storage import WeightStorage
from lrcompress.export.write import weight_bytes, write_model
from lrcompress.graph.names import unused_name
from lrcompress.graph.quantised import StorageResult
from lrcompress.graph.rewrites import apply_rewrites_
from lrcompress.messages import listed
from lrcompress.network.batches import Batch
from lrcompress.network.call import call
from lrcompress.network.unfused import runs_unfused
from lrcompress.structures.dynamic_input import exact_inputs_

OPSETS = (20, 21, 22, 23)
SCHEMA_VERSION = 1
PRODUCER = "lrcompress"


@dataclass(frozen=True)
class Port:
    """An input or output of the graph. Free axes are given by name, fixed ones by size."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportReport:
    path: str
    files: Mapping[str, int]  # file name -> bytes
    bytes: int
    parameter_bytes: int  # of the weights alone
    opset: int
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    axis_limits: Mapping[str, tuple[int, int | None]]  # smallest and largest size of free axes
    fixed_axes: Mapping[str, tuple[int, ...]]  # axes with a fixed size, by input
    axes: tuple[str, ...]  # one line per input: its axes, their sizes, why they are fixed
    node_counts: Mapping[str, int]
    rewrites: Mapping[str, int]
    forms: Mapping[str, str]  # of structures that have several forms, by layer
    formats: Mapping[str, str]  # of stored weights, by name
    notes: tuple[str, ...]
    seconds: float
    schema_version: int = SCHEMA_VERSION


@runs_unfused(compiled=True)
def export_onnx(
    module: nn.Module, batch: Batch, path: Path, options: ExportOptions | None = None
) -> ExportReport:
    """Write `module` as an ONNX file at `path`; the module itself is not changed.

    The inputs are the batch's tensors under their names. Axes for which the network accepts other
    sizes are free: axis 0 is called "batch", axis 1 of ids and masks "sequence"; others have their
    own names (see export/axes.py). Outputs keep the network's names (see named_outputs).

    Raises:
        ExportError: the network cannot be traced, or not with the requested axes, or the file
            cannot be written.
    """
    options = options or ExportOptions()
    started = time.perf_counter()
    _check_supported(options)
    check_arguments(module, batch)
    storage = WeightStorage.of(module, options.provider)
    notes = storage.notes(options.opset)
    options = replace(options, opset=storage.opset(options.opset))
    found = find_axes(module, batch, options.axes)
    traced, axes = first_traceable(
        found, lambda axes: _traced(module, batch, axes, options, storage)
    )
    model = traced.model
    known = {
        name: replace(axis, range=axis.range.intersection(traced.limits.get(name, AxisRange())))
        for name, axis in axes.known.items()
    }
    *rewrites, stored = apply_rewrites_(model, lambda m: storage.store_(m, options.storage))
    assert isinstance(stored, StorageResult)
    _describe_(model, options, to_metadata(known, axes.fixed))
    files = write_model(model, Path(path), external_data=options.external_data)
    sizes = {file.name: file.stat().st_size for file in files}
    return ExportReport(
        path=str(path),
        files=sizes,
        bytes=sum(sizes.values()),
        parameter_bytes=weight_bytes(model),
        opset=options.opset,
        precision=options.precision,
        inputs=tuple(_port(value) for value in model.graph.inputs),
        outputs=tuple(_port(value) for value in model.graph.outputs),
        axis_limits={name: (axis.range.least, axis.range.most) for name, axis in known.items()},
        fixed_axes=axes.fixed,
        axes=axes.lines,
        node_counts=dict(Counter(node.op_type for node in model.graph.all_nodes()).most_common()),
        rewrites={result.name: result.changes for result in (*rewrites, stored)},
        forms=traced.forms,
        formats=stored.formats,
        notes=(
            *notes,
            *axes.notes,
            *traced.notes,
            *_output_notes(module, batch),
            *(result.note for result in (*rewrites, stored) if result.note),
        ),
        seconds=time.perf_counter() - started,
    )


def _check_supported(options: ExportOptions) -> None:
    if options.opset not in OPSETS:
        known = ", ".join(map(str, OPSETS))
        raise ExportError(f"opset {options.opset} is not supported; choose one of {known}")
    if options.precision not in TORCH_DTYPES:
        known = ", ".join(TORCH_DTYPES)
        raise ExportError(f"precision {options.precision!r} is unknown; choose one of {known}")


@dataclass(frozen=True, eq=False)
class _Traced:
    model: Any  # an onnx_ir.Model
    limits: Mapping[str, AxisRange]  # of free axes, by name: what the trace allows
    forms: Mapping[str, str]
    notes: tuple[str, ...]  # actions beyond what was requested


def _traced(
    module: nn.Module,
    batch: Batch,
    axes: GraphAxes,
    options: ExportOptions,
    storage: WeightStorage,
) -> _Traced:
    example = tracing_example(module, batch, axes)
    shapes = _output_shapes(module, example)

    def attempt(*notes: str, tables: bool) -> _Traced:
        dtype = TORCH_DTYPES[options.precision]
        copied = cast_copy(module, options.precision, tables=tables)
        exact_inputs_(copied)
        forms = choose_forms_(copied, options.forms) if options.forms is not None else {}
        forward = NamedForward(copied, list(example), dtype, keep_io=options.keep_io).eval()
        inputs = forward.cast_inputs(example)
        names = tuple(shapes)
        model, limits = trace(
            forward, inputs, axes.free, names, opset=options.opset, kept=tuple(storage.weights)
        )
        other = tracing_example(module, batch, axes, unlike=example)
        _free_outputs_(model, shapes, _output_shapes(module, other))
        return _Traced(model, limits, forms, notes)

    tables = computed_tables(module) if options.precision != "fp32" else ()
    try:
        traced = attempt(tables=False)
    except ExportError:
        if not tables:
            raise
    else:
        if not tables or not mixes_dtypes(traced.model):
            return traced
    # Its float32 tables enter its activations, so it works only in a single dtype.
    return attempt(f"tables cast to {options.precision}: {', '.join(tables)}", tables=True)


def _free_outputs_(
    model: Any, shapes: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]
) -> None:
    """Free the axes of outputs whose size differs between two examples.

    The tracer may declare them constant: it gives a loop's results the length of the example.
    """
    import onnx_ir as ir

    for value in model.graph.outputs:
        first, second = shapes.get(value.name, ()), others.get(value.name, ())
        if value.shape is None or not len(value.shape) == len(first) == len(second):
            continue
        sizes = list(value.shape)
        for axis, size in enumerate(sizes):
            if isinstance(size, int) and first[axis] != second[axis]:
                sizes[axis] = f"{value.name}_{axis}"
        value.shape = ir.Shape(sizes)


def _output_shapes(module: nn.Module, example: Batch) -> dict[str, tuple[int, ...]]:
    """Run the network once and return the shapes of its outputs, by their names in the graph.

    This also tells a wrong input from a failure of the tracer.
    """
    forward = float32_forward(module, example)
    try:
        with torch.no_grad(), quiet():
            outputs = forward.outputs(*example.values())
    except Exception as error:  # the network's own code
        raise example_refused(type(module).__name__, example, error) from error
    if not outputs:
        raise ExportError(f"{type(module).__name__} returns no tensor; wrap its forward")
    found: dict[str, tuple[int, ...]] = {}
    for name, output in outputs.items():  # a graph's inputs and outputs have different names
        taken = {*example, *found, *outputs} - ({name} - {*example})
        found[unused_name(name, taken)] = tuple(output.shape)
    return found


def _output_notes(module: nn.Module, batch: Batch) -> Iterator[str]:
    """Yield notes on outputs that are not tensors, and on outputs with the name of an input."""
    with torch.no_grad(), quiet():
        raw = call(module, batch)
    lost = [f"{name or 'the output'} ({kind})" for name, kind in _no_tensors(raw, "")]
    if lost:
        yield f"not in the graph, as they are not tensors: {listed(lost)}"
    same = [name for name in named_outputs(raw) if name in batch]
    if same:
        yield f"inputs are called {listed(same)} too: in the graph the outputs are numbered"


def _no_tensors(raw: object, path: str) -> Iterator[tuple[str, str]]:
    parts = parts_of(raw)
    if parts is None and not isinstance(raw, Tensor | None):
        yield path, type(raw).__name__
    for name, part in (parts or {}).items():
        if name not in CACHES:
            yield from _no_tensors(part, f"{path}.{name}" if path else str(name))


def _describe_(model: Any, options: ExportOptions, axes: Mapping[str, str]) -> None:
    """Write the producer, the graph's name and the metadata."""
    model.producer_name, model.producer_version = PRODUCER, __version__
    model.graph.name = "lrcompress"
    facts = {"version": __version__, "precision": options.precision, **axes, **options.metadata}
    for key, value in facts.items():
        model.metadata_props[PREFIX + key] = str(value)


def _port(value: Any) -> Port:
    axes = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ())
    return Port(value.name, value.dtype.name.lower(), axes)
