"""The checks that a file computes the same as its network: in ONNX Runtime, and in float64."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from lrcompress.export.axis_metadata import SEQUENCE, known_axes
from lrcompress.export.io_matching import wire
from lrcompress.export.parity_inputs import FreeAxes, cases
from lrcompress.export.precision import rounded_copy
from lrcompress.export.session import ProviderUnavailable, Session, open_session
from lrcompress.export.verify.activation_rounding import (
    Coarse,
    in_float32,
    with_rounded_inputs,
    without_rounding,
)
from lrcompress.export.verify.arithmetic_check import arithmetic
from lrcompress.export.verify.float64 import double
from lrcompress.export.verify.integer_check import integer_products
from lrcompress.export.verify.interface_check import interface, shapes_check
from lrcompress.export.verify.parity import Comparison, ParityResult, Reference, compare, tolerance
from lrcompress.export.verify.result import Check, Subject, VerifyOptions
from lrcompress.graph.upcast import upcast
from lrcompress.scratch import scratch_folder

_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "FusedMatMul", "FusedGemm", "Einsum")
_OTHER_CODES = 2  # allowed multiple of torch's error with other rounding of activations
_OWN_ROUNDING = 8  # allowed multiple of torch's float32 error; both are maxima over few rows
_RIGHT_ROUNDING = 16  # allowed multiple of any float32 error for a graph that is right in float64


def parity(subject: Subject, options: VerifyOptions) -> tuple[Check, ...]:
    """Run the checks interface, parity, arithmetic and shapes; only parity if they cannot run."""
    if subject.precision == "bf16" and subject.provider == "cpu":
        reason = "not run on CPU: ONNX Runtime has no bfloat16 product there"
        with scratch_folder() as folder:
            path = folder / "float32.onnx"
            upcast(subject.path, path)
            found = _checks(subject, path, open_session(path), options)
        name = "parity of bfloat16 weights in float32 arithmetic"
        upcasted = [
            replace(check, name=name) if check.name == "parity" else check for check in found
        ]
        return (Check("parity", "numeric", None, reason), *upcasted)
    try:
        session = open_session(subject.path, subject.provider, tf32=False)
        return _checks(subject, subject.path, session, options)
    except ProviderUnavailable as error:
        return (Check("parity", "numeric", None, f"not run: {error}"),)


def _checks(
    subject: Subject, path: Path, session: Session, options: VerifyOptions
) -> tuple[Check, ...]:
    """Run the checks of a session of the file at `path`."""
    module, batch = subject.reference
    wiring = wire(session.get_inputs(), session.get_outputs(), module, batch)
    wired = interface(subject.graph, wiring)
    if wiring.unknown_inputs or not wiring.outputs:
        return (wired, Check("parity", "numeric", None, "not run: see interface"))
    given = {name: batch[name] for name in wiring.inputs.values()}
    rounded = rounded_copy(module, subject.precision) if subject.precision != "fp32" else None
    by_blocks = with_rounded_inputs(subject)
    coarse = Coarse(subject, by_blocks=by_blocks)
    reference = Reference(
        module, double(module, given), rounded, coarse if coarse.differs else None
    )
    shapes = options.shapes
    if shapes is None:
        named = {
            wiring.inputs[argument.name]: {
                axis: dim for axis, dim in enumerate(argument.shape) if isinstance(dim, str)
            }
            for argument in session.get_inputs()
        }
        free = FreeAxes(named, known_axes(subject.metadata))
        shapes = cases(batch, _longest(subject), free)
    comparison = Comparison(session, reference, wiring, given, shapes, options.seed)
    if by_blocks:
        numeric = _with_and_without_rounding(subject, path, comparison, options.tolerance)
    else:
        numeric = _numeric(subject, comparison, options.tolerance)
    integers = integer_products(subject, comparison)
    return (wired, *numeric, *integers, shapes_check(subject, comparison))


def _with_and_without_rounding(
    subject: Subject, path: Path, comparison: Comparison, limit: float | None
) -> tuple[Check, ...]:
    """Check parity of a file whose products round their inputs, as it is and in float32."""
    coarse = Coarse(subject, by_blocks=())
    with scratch_folder() as folder:
        in_float32(path, folder / "exact.onnx")
        session = open_session(folder / "exact.onnx", rounds=False)
        reference = replace(comparison.reference, coarse=coarse if coarse.differs else None)
        exact, arithmetic = _numeric(
            subject, replace(comparison, session=session, reference=reference), limit
        )
    result = compare(comparison)
    bound = max(exact.numbers["tolerance"], _OTHER_CODES * result.activations)
    parity = _parity(result, bound if limit is None else limit, comparison.seed, unknown=False)
    return parity, replace(exact, name="parity with products in float32"), arithmetic


def _numeric(subject: Subject, comparison: Comparison, limit: float | None) -> tuple[Check, Check]:
    """Check parity in ONNX Runtime and arithmetic in float64.

    The errors of a graph that is right in float64 are rounding errors, so a wider bound applies.
    """
    result = compare(comparison)
    bound = tolerance(subject.precision, *_depth(subject.expanded))
    bound = max(bound, 4 * result.rounding, _OWN_ROUNDING * result.own)
    bound = max(bound, _OTHER_CODES * result.activations)
    near = result.broken is None and result.worst <= bound
    evaluation = arithmetic(subject, _without_rounding(comparison), bound if near else None)
    if evaluation.check.passed:
        rounding = max(result.own, evaluation.rounding)
        bound = max(bound, _RIGHT_ROUNDING * rounding)
    unknown = limit is None and bound >= 1 >= result.worst / bound
    bound = bound if limit is None else limit
    return _parity(result, bound, comparison.seed, unknown=unknown), evaluation.check


def _parity(result: ParityResult, bound: float, seed: int, *, unknown: bool) -> Check:
    numbers = {
        "errors": dict(result.errors),
        "tolerance": bound,
        "rounding_of_weights": result.rounding,
        "own_rounding": result.own,
        "activations": result.activations,
        "shapes": list(result.cases),
        "seed": seed,
    }
    if result.broken is not None:
        return Check("parity", "numeric", False, result.broken, numbers)
    shapes = ", ".join(result.cases)
    if unknown:
        detail = (
            f"no comparison is possible: {why_unknown(result, bound)} of the outputs' scale "
            f"(shapes {shapes}); see arithmetic and values"
        )
        return Check("parity", "numeric", None, detail, numbers)
    detail = (
        f"largest error {result.worst:.1e} of the outputs' scale (allowed {bound:.1e}) "
        f"over shapes {shapes}"
    )
    return Check("parity", "numeric", result.worst <= bound, detail, numbers)


def why_unknown(result: ParityResult, bound: float) -> str:
    """Return what makes the allowed error as large as the outputs."""
    if bound <= _OTHER_CODES * result.activations:
        cause = "another rounding of the inputs of products to 8 bits changes the outputs"
        return f"{cause} by {result.activations:.1e}"
    if bound <= 4 * result.rounding:
        cause = "rounding the weights to the graph's precision changes the outputs"
        return f"{cause} by {result.rounding:.1e}"
    return f"torch's own float32 is off by {result.own:.1e}"


def _without_rounding(comparison: Comparison) -> Comparison:
    """Return the comparison with a network that does not round activations, nor its graph."""
    reference = comparison.reference
    module = without_rounding(reference.module)
    if module is reference.module:
        return comparison
    rounded = None if reference.rounded is None else without_rounding(reference.rounded)
    exact = Reference(module, double(module, comparison.batch), rounded)
    return replace(comparison, reference=exact)


def _depth(model: Any) -> tuple[int, int]:
    """Return the number of products in the graph, and their largest inner size by the weights."""
    products = sum(node.op_type in _PRODUCTS for node in model.graph)
    read_by_rows = {node.inputs[0].name for node in model.graph if node.op_type == "Gather"}
    inner = 1
    for name, value in model.graph.initializers.items():
        dims = tuple(map(int, value.shape))
        if len(dims) == 2 and name not in read_by_rows:
            inner = max(inner, dims[0])
        elif len(dims) > 2:
            inner = max(inner, prod(dims[1:]))
    return products, inner


def _longest(subject: Subject) -> int | None:
    """Return the longest sequence that the network accepts, by our metadata or its config."""
    known = known_axes(subject.metadata).get(SEQUENCE)
    if known is not None and known.range.most is not None:
        return known.range.most
    config = getattr(subject.module, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if isinstance(positions, int) else None  # some tables start at row two
