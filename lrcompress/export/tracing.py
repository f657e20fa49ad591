"""Trace a network with torch.onnx: no console output, one-line errors, checked free axes."""

from __future__ import annotations

import contextlib
import io
import keyword
import logging
import re
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.fx.graph

from lrcompress.errors import ExportError
from lrcompress.export.axis_metadata import Axes
from lrcompress.export.axis_range import AxisRange
from lrcompress.export.forward import NamedForward
from lrcompress.graph.rewrites.name_weights import WRAPPER
from lrcompress.network.batches import Batch
from lrcompress.scratch import require_temporary_folder

_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnx_diagnostic", "transformers")


def trace(
    forward: NamedForward,
    example: Batch,
    axes: Axes,
    output_names: tuple[str, ...],
    *,
    opset: int,
    kept: Collection[str] = (),
) -> tuple[Any, dict[str, AxisRange]]:
    """Return the onnx_ir.Model and, for each free axis, the sizes that the network's code allows.

    kept: parameters of the wrapped network that the optimiser must not compute with, for instance
        transpose. They are initializers of their own names and shapes.

    Raises:
        ExportError: the network cannot be traced, or turns a free axis into a constant.
    """
    from onnxscript.optimizer import optimize

    from lrcompress.export.attention import attention_translation

    names = sorted({label for per_input in axes.values() for label in per_input.values()})
    dims = {label: torch.export.Dim(label) for label in names}
    shapes = tuple({axis: dims[label] for axis, label in axes[name].items()} for name in example)
    require_temporary_folder()
    try:
        with torch.no_grad(), quiet(), _patched_torch():
            program = torch.onnx.export(
                forward,
                tuple(example.values()),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(shapes,),
                input_names=list(example),
                output_names=list(output_names),
                custom_translation_table=attention_translation(opset),
                optimize=False,
                verbose=False,
            )
            assert program is not None
            # torch.onnx's own pass would also fuse nodes into operators of opset 23, and its
            # RotaryEmbedding fails for more than one example.
            with _unknown_values(program.model, kept):
                model = optimize(program.model)
            _round_folded_norms_(model)
    except Exception as error:  # torch.export, torch.onnx and the network's own code
        raise ExportError(_explained(error, forward)) from error
    if model.opset_imports.get("") != opset:
        raise ExportError(
            f"torch.onnx wrote opset {model.opset_imports.get('')}, not the requested {opset}; "
            "request the one that it wrote"
        )
    _check_free(model, axes, forward)
    return model, _ranges(program.exported_program, axes, list(example))


@contextlib.contextmanager
def _unknown_values(model: Any, names: Collection[str]) -> Iterator[None]:
    """Make initializers inputs of the graph, so that the optimiser does not see their values."""
    hidden = {}
    for name in names:
        value = model.graph.initializers.get(WRAPPER + name)
        if value is not None:
            hidden[value.name] = value.const_value
            del model.graph.initializers[value.name]
            value.const_value = None
            model.graph.inputs.append(value)
    try:
        yield
    finally:
        for value in list(model.graph.inputs):
            if value.name in hidden:
                model.graph.inputs.remove(value)
                value.const_value = hidden[value.name]
                model.graph.register_initializer(value)


def check_trace(forward: NamedForward, example: Batch, axes: Axes) -> None:
    """Trace without converting to ONNX, which takes a fraction of the time.

    Raises:
        ExportError: the network cannot be traced, or turns a free axis into a constant.
    """
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(axes[name], free) for name in example)
    try:
        with torch.no_grad(), quiet():
            torch.export.export(
                forward, tuple(example.values()), dynamic_shapes=(shapes,), strict=False
            )
    except Exception:  # torch.onnx has other ways to trace, so its result decides
        names = tuple(f"output_{place}" for place in range(len(forward.outputs(*example.values()))))
        trace(forward, example, axes, names, opset=20)


def _round_folded_norms_(model: Any) -> None:
    """Cast folded weights to the convolution's dtype.

    The optimiser folds a batch norm into the preceding convolution, always in float32.
    """
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        dtype = node.inputs[0].dtype
        if dtype not in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16):
            continue
        for value in node.inputs[1:]:
            if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT:
                continue
            rounded = value.const_value.numpy().astype(dtype.numpy())
            value.const_value, value.dtype = ir.tensor(rounded, dtype=dtype), dtype


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress messages and warnings of a tracer on stdout and stderr."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


@contextlib.contextmanager
def _patched_torch() -> Iterator[None]:
    """Work around two faults of torch 2.13 during a trace.

    torch.fx generates code such as ``self.parts.in.weight``, which is invalid if a name is a Python
    keyword, and quotes other names without escaping.

    While it traces, torch.onnx registers a loop in place of a recurrent layer. torch does not
    invalidate the operator's dispatch cache, so only the first trace in a process would have a free
    length. The caches are therefore cleared before and after.
    """
    _clear_recurrent_dispatch()
    format_target = torch.fx.graph._format_target
    torch.fx.graph._format_target = _attribute
    try:
        yield
    finally:
        torch.fx.graph._format_target = format_target
        _clear_recurrent_dispatch()


def _attribute(base: str, target: str) -> str:
    """Return code that accesses the attribute at path `target`, whose parts may have any name."""
    for name in target.split("."):
        plain = name.isidentifier() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base


def _clear_recurrent_dispatch() -> None:
    aten = torch.ops.aten
    for operator in (aten.lstm.input, aten.lstm.data, aten.gru.input, aten.gru.data):
        getattr(operator, "_dispatch_cache", {}).clear()


def _explained(error: Exception, forward: NamedForward) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip(" -*") for line in str(cause).splitlines() if line.strip(" -*")]
    specific = [line for line in lines if re.search(r"specif|inferred|not valid|constant", line)]
    reason = (specific or lines or [type(cause).__name__])[0][:300]
    advice = "simplify its forward so that torch.export accepts it"
    if re.search(r"static shape|inferred to be a constant|specializ", str(cause)):
        advice = "request a static sequence, or remove the dependence on its length"
    return f"{type(forward.module).__name__} cannot be traced: {reason}; {advice}"


def _check_free(model: Any, axes: Axes, forward: NamedForward) -> None:
    """Raise ExportError if torch.export turned a free axis into a constant without an error."""
    for value in model.graph.inputs:
        for axis, label in axes.get(value.name, {}).items():
            if isinstance(value.shape[axis], int):
                raise ExportError(
                    f"{type(forward.module).__name__}: axis {axis} ({label}) of input {value.name} "
                    f"cannot vary: its code fixes the size {value.shape[axis]} of the example; "
                    f"request a static {label}, or remove the dependence on its size"
                )


def _ranges(exported: Any, axes: Axes, inputs: list[str]) -> dict[str, AxisRange]:
    found: dict[str, AxisRange] = {}
    if exported is None:
        return found
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for name, argument in zip(inputs, exported.graph_signature.user_inputs, strict=True):
        shape = placeholders[argument].meta["val"].shape
        for axis, label in axes[name].items():
            size = getattr(getattr(shape[axis], "node", None), "expr", None)
            bound = exported.range_constraints.get(size)
            if bound is not None:
                upper = int(bound.upper) if bound.upper.is_Integer else None
                found[label] = AxisRange(max(1, int(bound.lower)), upper)
    return found
