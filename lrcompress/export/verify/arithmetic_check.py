"""Compare graph and network in float64, to separate errors of the graph from rounding.

In float32 the rounding of the arithmetic hides errors of a graph, especially if the network is
ill-conditioned. In float64 only the rounding of constants remains that the exporter computed and
stored in the file's precision (a scale, a table of angles). Its effect is measured. So a missing
bias, a wrong epsilon or a swapped pair of weights is found, even if its effect is small.

In half precision a graph holds the network's weights, rounded like those of the reference, and a
few constants that the exporter computed: a scale, a table of angles, a kernel with a norm folded
into it. Only these are rounded differently from the reference. Perturbing each by its rounding
gives the error that the graph may have. Without such constants it may have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.parity_inputs import Case, draw
from lrcompress.export.verify.float64 import Double, EvaluatedGraph, double
from lrcompress.export.verify.parity import UNIT_ROUNDOFF, Comparison, fed, row_error, shape_of
from lrcompress.export.verify.result import Check, Subject
from lrcompress.export.verify.tensor_matching import PRECISIONS, ROUNDING, Constants, Target
from lrcompress.graph.stored_constants import Stored, stored_constants
from lrcompress.messages import label, one_line
from lrcompress.network.batches import Batch

_CONSTANTS = 16 * UNIT_ROUNDOFF["fp32"]  # error allowed for the rounding of float32 constants
_TRIALS = 2  # random perturbations of the constants, in half precision
_MOST_FLOPS = 2 * 10**10  # over all evaluated shapes: a few seconds on one core in float64
_MOST_POSITIONS = 64  # batch x length of a shape: larger shapes add nothing here
_MOST_CASES = 4  # the fourth has left padding
_NAME = "arithmetic"
# Exact values, not rounded ones: 1 - mask, x / 2. Other exact values cannot be recognised, because
# every 16th value of bfloat16 is an integer or a half by chance
_EXACT = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Evaluation:
    """The result of the check in float64, and the error that float32 arithmetic alone causes."""

    check: Check
    rounding: float = 0.0  # largest error of the graph in float32 by ONNX's reference evaluator


def arithmetic(subject: Subject, comparison: Comparison, bound: float | None) -> Evaluation:
    """Check the largest error of the graph in float64, over the smaller shapes.

    bound: the error within which the file, run by ONNX Runtime, equals its network; None if it
        does not. If the error in float64 exceeds twice that, the float64 evaluation is at fault,
        and the check does not run.
    """
    reference = comparison.reference
    wide = reference.double
    if wide.module is not None and reference.rounded is not None:
        wide = double(reference.rounded, comparison.batch)
    if wide.module is None:
        return _not_run(wide.reason)
    draws = _draws(comparison)
    flops = _flops(comparison, draws)
    if flops > _MOST_FLOPS:
        return _not_run(f"{flops:.1e} FLOPs are above {_MOST_FLOPS:.0e}")
    try:
        graph = EvaluatedGraph(subject.read_expanded(), wide=True)
        found = [_errors(graph, wide, comparison, drawn) for drawn in draws]
        rounding = _constants_rounding(subject, graph, comparison, draws)
    except Exception as error:  # onnx's reference implementation lacks some operators
        return _not_run(f"the graph cannot be evaluated in float64 ({one_line(error)})")
    own = max(one.own for one in found)
    allowed = max(_CONSTANTS, 2 * own, 2 * rounding)
    worst = max(found, key=lambda one: one.error)
    if bound is not None and worst.error > 2 * bound:
        return _not_run("ONNX Runtime and the evaluation in float64 disagree about the graph")
    shapes = ", ".join(dict.fromkeys(shape_of(drawn) for drawn in draws))
    numbers = {"error": worst.error, "tolerance": allowed, "shapes": shapes}
    detail = f"largest error {worst.error:.1e} in float64 (allowed {allowed:.1e}) over {shapes}"
    if worst.error > allowed:
        detail += f"; output {label(worst.where)} is not what the network computes"
    check = Check(_NAME, "numeric", worst.error <= allowed, detail, numbers)
    return Evaluation(check, _single(subject, comparison, wide, draws))


def _constants_rounding(
    subject: Subject, graph: EvaluatedGraph, comparison: Comparison, draws: Sequence[Batch]
) -> float:
    """Return the largest change of an output when the computed constants vary by their rounding."""
    rounded = comparison.reference.rounded
    if rounded is None:
        return 0.0
    constants = _computed_constants(subject, rounded)
    generator = np.random.default_rng(comparison.seed)
    if not constants:
        return 0.0
    trials = [
        {one.name: _off_by_rounding(one, generator) for one in constants} for _ in range(_TRIALS)
    ]
    names, worst = tuple(comparison.wiring.outputs), 0.0
    for drawn in draws:
        feed = comparison.feed(drawn)
        plain = graph(names, feed)
        for off in trials:
            moved = graph(names, feed, off)
            for name in names:
                if plain[name].dtype.kind == "f":
                    exact = torch.from_numpy(np.asarray(plain[name]))
                    worst = max(worst, _error(moved[name], exact, drawn))
    return worst


def _computed_constants(subject: Subject, module: nn.Module) -> tuple[Stored, ...]:
    """Return the floating-point constants that equal none of the network's tensors.

    module: the network with its weights rounded to the graph's precision.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    targets = [Target(name, t.detach(), roundings=0) for name, t in tensors if t.numel()]
    stored = stored_constants(subject.expanded)
    return Constants(stored, subject.precision, {}).unlike(targets)


def _off_by_rounding(one: Stored, generator: np.random.Generator) -> NDArray[Any]:
    """Return the values of a constant, each moved up or down by its possible rounding."""
    values = one.tensor.numpy().astype(np.float64)
    rounding = ROUNDING[PRECISIONS[one.dtype]]
    kept = np.isin(np.abs(values), _EXACT) | ~np.isfinite(values)
    signs = generator.choice([-1.0, 1.0], values.shape)
    off: NDArray[Any] = np.where(kept, values, values * (1 + rounding * signs))
    one.release()
    return off


def _single(subject: Subject, comparison: Comparison, wide: Double, draws: list[Batch]) -> float:
    """Return the error of the graph in float32, evaluated by ONNX's reference implementation.

    It shows another rounding than torch, which sums some operators in float64 that ONNX Runtime
    sums in float32.
    """
    if subject.precision != "fp32":
        return 0.0
    try:
        graph = EvaluatedGraph(subject.read_expanded(), wide=False)
        return max(_errors(graph, wide, comparison, drawn).error for drawn in draws)
    except Exception:  # as above; the result only widens a tolerance
        return 0.0


def _draws(comparison: Comparison) -> list[Batch]:
    generator = torch.Generator().manual_seed(comparison.seed)
    made = []
    for case in _small(comparison.cases):
        drawn = draw(comparison.batch, case, comparison.fixed, generator)
        for graph_name, argument in comparison.arguments.items():
            name = comparison.wiring.inputs[graph_name]
            if drawn[name].is_floating_point():  # both get values in the graph's dtype
                drawn[name] = torch.from_numpy(fed(drawn[name], argument)).float()
        made.append(drawn)
    return made


def _flops(comparison: Comparison, draws: Sequence[Batch]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        for drawn in draws:
            comparison.reference.module(**copied(drawn))
    return counter.get_total_flops()


@dataclass(frozen=True)
class _Errors:
    error: float  # of the graph
    own: float  # of the network in float32
    where: str  # output with the largest error


def _errors(graph: EvaluatedGraph, wide: Double, comparison: Comparison, drawn: Batch) -> _Errors:
    wiring = comparison.wiring
    got, wanted = graph(tuple(wiring.outputs), comparison.feed(drawn)), wide(drawn)
    with torch.no_grad():
        module = comparison.reference.rounded or comparison.reference.module
        single = named_outputs(module(**copied(drawn)))
    worst = _Errors(0.0, 0.0, "")
    for name, network_name in wiring.outputs.items():
        exact = wanted[network_name]
        if exact.is_floating_point():
            error = _error(got[name], exact, drawn)
            own = max(worst.own, _error(single[network_name], exact, drawn))
            where = name if error >= worst.error else worst.where
            worst = _Errors(max(error, worst.error), own, where)
    return worst


def _error(got: NDArray[Any] | Tensor, wanted: Tensor, drawn: Batch) -> float:
    """Return row_error; raise ValueError if the two cannot be compared."""
    found = row_error(got, wanted, drawn)
    if isinstance(found, str):
        raise ValueError(f"it {found}")
    return found


def _small(shapes: Sequence[Case]) -> list[Case]:
    sizes = [(case.batch * (case.length or 1), index) for index, case in enumerate(shapes)]
    small = [shapes[i] for size, i in sizes if size <= _MOST_POSITIONS]
    return small[:_MOST_CASES] or [shapes[min(sizes)[1]]]


def _not_run(why: str) -> Evaluation:
    return Evaluation(Check(_NAME, "numeric", None, f"not run: {why}"))
