"""The check that a file computes what its network computes, and which tensor is which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx

from lrcompress.export.check import Check, Subject, listed
from lrcompress.export.draws import Case, cases
from lrcompress.export.parity import compare, tolerance
from lrcompress.export.precision import rounded_copy
from lrcompress.export.session import ProviderUnavailable, Session, open_session
from lrcompress.export.upcast import upcast
from lrcompress.export.wiring import Wiring, wire
from lrcompress.scratch import scratch_folder

_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "FusedMatMul", "FusedGemm", "Einsum")


def parity(
    subject: Subject, shapes: Sequence[Case] | None, seed: int, limit: float | None
) -> tuple[Check, ...]:
    """Outputs against the network's, over shapes; and which tensor is which."""
    if subject.module is None or subject.batch is None:
        return (Check("parity", "numeric", None, "no reference network was given"),)
    if subject.precision == "bf16" and subject.provider == "cpu":
        reason = "not run on CPU: ONNX Runtime has no bfloat16 product there"
        with scratch_folder() as folder:
            path = folder / "float32.onnx"
            upcast(subject.path, path)
            found = _parity(subject, open_session(path), shapes, seed, limit)
        name = "parity of bfloat16 weights in float32 arithmetic"
        upcasted = [
            replace(check, name=name) if check.name == "parity" else check for check in found
        ]
        return (Check("parity", "numeric", None, reason), *upcasted)
    try:
        session = open_session(subject.path, subject.provider, tf32=False)
        return _parity(subject, session, shapes, seed, limit)
    except ProviderUnavailable as error:
        return (Check("parity", "numeric", None, f"not run: {error}"),)


def _parity(
    subject: Subject,
    session: Session,
    shapes: Sequence[Case] | None,
    seed: int,
    limit: float | None,
) -> tuple[Check, ...]:
    module, batch = subject.module, subject.batch
    assert module is not None
    assert batch is not None
    wiring = wire(session.get_inputs(), session.get_outputs(), module, batch)
    interface = _interface(wiring)
    if interface.passed is False:
        return (interface, Check("parity", "numeric", None, "not run: inputs are missing"))
    chosen = tuple(shapes) if shapes is not None else cases(batch, _longest(subject))
    bound = limit if limit is not None else tolerance(subject.precision, *_depth(subject.graph))
    rounded = rounded_copy(module, subject.precision) if subject.precision != "fp32" else None
    result = compare(session, module, batch, wiring, chosen, seed, rounded)
    if limit is None:
        bound = max(bound, 4 * result.rounding)
    numbers = {
        "errors": dict(result.errors),
        "tolerance": bound,
        "rounding_of_weights": result.rounding,
        "shapes": list(result.cases),
        "seed": seed,
    }
    if result.broken is not None:
        return interface, Check("parity", "numeric", False, result.broken, numbers)
    detail = (
        f"largest error {result.worst:.1e} of the outputs' scale (allowed {bound:.1e}) "
        f"over shapes {', '.join(result.cases)}"
    )
    return interface, Check("parity", "numeric", result.worst <= bound, detail, numbers)


def _interface(wiring: Wiring) -> Check:
    notes = []
    if wiring.unknown_inputs:
        notes.append(f"the graph asks for {listed(wiring.unknown_inputs)}, which the data lacks")
    if wiring.unused_inputs:
        notes.append(f"the graph does not take {listed(wiring.unused_inputs)}")
    renamed = [f"{a} is {b}" for a, b in {**wiring.inputs, **wiring.outputs}.items() if a != b]
    if renamed:
        notes.append(f"matched by kind: {listed(renamed)}")
    if wiring.uncompared_outputs:
        notes.append(f"not compared: {listed(wiring.uncompared_outputs)}")
    if not wiring.outputs:
        notes.append("none of its outputs is one of the network's")
    plain = f"inputs {listed(tuple(wiring.inputs))}; outputs {listed(tuple(wiring.outputs))}"
    passed = not wiring.unknown_inputs and bool(wiring.outputs)
    return Check("interface", "graph", passed, "; ".join(notes) or plain)


def _depth(graph: onnx.ModelProto) -> tuple[int, int]:
    """Products in the graph, and the largest inner size that a stored weight gives one."""
    products = sum(node.op_type in _PRODUCTS for node in graph.graph.node)
    read_by_rows = {n.input[0] for n in graph.graph.node if n.op_type == "Gather"}
    inner = 1
    for tensor in graph.graph.initializer:
        if len(tensor.dims) == 2 and tensor.name not in read_by_rows:
            inner = max(inner, tensor.dims[0])
        elif len(tensor.dims) > 2:
            inner = max(inner, prod(tensor.dims[1:]))
    return products, inner


def _longest(subject: Subject) -> int | None:
    """Positions that the network takes: noted by our exporter, or in its configuration."""
    noted = {entry.key: entry.value for entry in subject.graph.metadata_props}
    limits = json.loads(noted.get("lrcompress.axis_limits", "{}"))
    if isinstance(limits, dict) and limits.get("sequence", [1, None])[1] is not None:
        return int(limits["sequence"][1])
    config = getattr(subject.module, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if isinstance(positions, int) else None  # some tables start at two
