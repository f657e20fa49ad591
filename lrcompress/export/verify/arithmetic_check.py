"""The check of what a graph computes, apart from how it rounds: graph and network in float64.

In float32 an error of a graph hides behind the rounding of its arithmetic, and the more so the
worse the network's condition is. In float64 what remains are the constants that the exporter
computed and stored in the file's precision (a scale, a table of angles), and what their rounding
may do is measured. So a bias that was dropped, another epsilon, an exchanged pair of weights show,
however little they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.parity_inputs import Case, draw
from lrcompress.export.verify.constant_rounding import computed_constants, off_by_rounding
from lrcompress.export.verify.float64 import Double, EvaluatedGraph, double
from lrcompress.export.verify.parity import UNIT_ROUNDOFF, Comparison, fed, row_error, shape_of
from lrcompress.export.verify.result import Check, Subject
from lrcompress.messages import label, one_line
from lrcompress.network.batches import Batch

_CONSTANTS = 16 * UNIT_ROUNDOFF["fp32"]  # what constants in float32 may put an output off by
_TRIALS = 2  # of constants that are off by their rounding, in half precision
_MOST_FLOPS = 2 * 10**10  # of the shapes that are evaluated: a few seconds of one core in float64
_MOST_POSITIONS = 64  # of a shape: rows and lengths beyond it add nothing here
_MOST_CASES = 4  # padding on the left is the fourth
_NAME = "arithmetic"


@dataclass(frozen=True)
class Evaluation:
    """How far the graph is from its network in float64, beside what float32 alone does."""

    check: Check
    rounding: float = 0.0  # largest error of the graph in float32, evaluated without ONNX Runtime


def arithmetic(subject: Subject, comparison: Comparison, agreed: float | None) -> Evaluation:
    """Largest error of the graph in float64, over the smaller ones of the shapes.

    agreed: how near the file as it runs is to its network; None if it is not near. Where it is and
        the two evaluations are further apart, that in float64 is at fault, and nothing is said.
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
        graph = EvaluatedGraph(subject.graph, subject.path.parent, wide=True)
        found = [_errors(graph, wide, comparison, drawn) for drawn in draws]
        rounding = _constants_rounding(subject, graph, comparison, draws)
    except Exception as error:  # of onnx's reference implementation, which lacks some operators
        return _not_run(f"the graph cannot be evaluated in float64 ({one_line(error)})")
    own = max(one.own for one in found)
    allowed = max(_CONSTANTS, 2 * own, 2 * rounding)
    worst = max(found, key=lambda one: one.error)
    if agreed is not None and worst.error > 2 * agreed:
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
    """Largest change of an output when the graph's own constants are off by their rounding."""
    rounded = comparison.reference.rounded
    if rounded is None:
        return 0.0
    constants = computed_constants(subject, rounded)
    generator = np.random.default_rng(comparison.seed)
    worst = 0.0
    for _ in range(_TRIALS if constants else 0):
        off = off_by_rounding(constants, generator)
        for drawn in draws:
            names, feed = tuple(comparison.wiring.outputs), _feed(comparison, drawn)
            plain, moved = graph(names, feed), graph(names, feed, off)
            for name in names:
                if plain[name].dtype.kind == "f":
                    exact = torch.from_numpy(np.asarray(plain[name]))
                    worst = max(worst, _error(moved[name], exact, drawn))
    return worst


def _feed(comparison: Comparison, drawn: Batch) -> dict[str, NDArray[Any]]:
    return {
        name: fed(drawn[comparison.wiring.inputs[name]], argument)
        for name, argument in comparison.arguments.items()
    }


def _single(subject: Subject, comparison: Comparison, wide: Double, draws: list[Batch]) -> float:
    """Of the graph in float32 as another implementation rounds it: torch sums some operators in
    float64 of which ONNX Runtime's are float32."""
    if subject.precision != "fp32":
        return 0.0
    try:
        graph = EvaluatedGraph(subject.graph, subject.path.parent, wide=False)
        return max(_errors(graph, wide, comparison, drawn).error for drawn in draws)
    except Exception:  # as above; it only widens a tolerance
        return 0.0


def _draws(comparison: Comparison) -> list[Batch]:
    generator = torch.Generator().manual_seed(comparison.seed)
    made = []
    for case in _small(comparison.cases):
        drawn = draw(comparison.batch, case, comparison.fixed, generator)
        for graph_name, argument in comparison.arguments.items():
            name = comparison.wiring.inputs[graph_name]
            if drawn[name].is_floating_point():  # in the graph's dtype, for both
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
    where: str  # the output that is furthest off


def _errors(graph: EvaluatedGraph, wide: Double, comparison: Comparison, drawn: Batch) -> _Errors:
    wiring = comparison.wiring
    got, wanted = graph(tuple(wiring.outputs), _feed(comparison, drawn)), wide(drawn)
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
    """Raises ValueError where the two cannot be compared."""
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
