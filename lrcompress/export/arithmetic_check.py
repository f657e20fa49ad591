"""The check of what a graph computes, apart from how it rounds: graph and network in float64.

In float32 an error of a graph hides behind the rounding of its arithmetic, and the more so the
worse the network's condition is. In float64 what remains are the constants that the file stores in
its own precision (a scale, a table of angles): an error of a few units of that. So a bias that was
dropped, another epsilon, an exchanged pair of weights show, however little they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.export.check import Check, Subject
from lrcompress.export.double import Double, DoubleGraph, double
from lrcompress.export.draws import Case, draw
from lrcompress.export.forward import copied, named_outputs
from lrcompress.export.parity import UNIT_ROUNDOFF, Comparison, fed, row_error, shape_of
from lrcompress.profiling.batches import Batch
from lrcompress.wording import label, one_line

_CONSTANTS = 16  # unit roundoffs of the file's precision that its stored constants may be off by
_MOST_FLOPS = 2 * 10**10  # of the shapes that are evaluated: a few seconds of one core in float64
_MOST_POSITIONS = 64  # of a shape: rows and lengths beyond it add nothing here
_NAME = "arithmetic"


def arithmetic(subject: Subject, comparison: Comparison, parity: Check) -> Check:
    """Largest error of the graph in float64, over the smaller ones of the shapes.

    parity: the check of the file as it runs. Where that holds and the two evaluations are further
        apart than it allows, the evaluation of the graph is at fault, and nothing is said.
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
        graph = DoubleGraph(subject.graph, subject.path.parent)
        found = [_errors(graph, wide, comparison, drawn) for drawn in draws]
    except Exception as error:  # of onnx's reference implementation, which lacks some operators
        return _not_run(f"the graph cannot be evaluated in float64 ({one_line(error)})")
    own = max(own for _, own, _ in found)
    allowed = max(_CONSTANTS * UNIT_ROUNDOFF[subject.precision], 2 * own)
    worst, _, where = max(found)
    shapes = ", ".join(dict.fromkeys(shape_of(drawn) for drawn in draws))
    numbers = {"error": worst, "tolerance": allowed, "shapes": shapes}
    if parity.passed and worst > 2 * float(parity.numbers["tolerance"]):
        return _not_run("ONNX Runtime and the evaluation in float64 disagree about the graph")
    detail = f"largest error {worst:.1e} in float64 (allowed {allowed:.1e}) over shapes {shapes}"
    if worst > allowed:
        detail += f"; output {label(where)} is not what the network computes"
    return Check(_NAME, "numeric", worst <= allowed, detail, numbers)


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


def _errors(
    graph: DoubleGraph, wide: Double, comparison: Comparison, drawn: Batch
) -> tuple[float, float, str]:
    """Of the graph in float64 and of the network in float32; the output that is furthest off."""
    wiring = comparison.wiring
    feed = {
        name: fed(drawn[wiring.inputs[name]], argument)
        for name, argument in comparison.arguments.items()
    }
    got, wanted = graph(tuple(wiring.outputs), feed), wide(drawn)
    with torch.no_grad():
        module = comparison.reference.rounded or comparison.reference.module
        single = named_outputs(module(**copied(drawn)))
    worst, own, where = 0.0, 0.0, ""
    for name, network_name in wiring.outputs.items():
        if not wanted[network_name].is_floating_point():
            continue
        error = _error(got[name], wanted[network_name], drawn)
        own = max(own, _error(single[network_name], wanted[network_name], drawn))
        if error >= worst:
            worst, where = error, name
    return worst, own, where


def _error(got: NDArray[Any] | Tensor, wanted: Tensor, drawn: Batch) -> float:
    """Raises ValueError where the two cannot be compared."""
    found = row_error(got, wanted, drawn)
    if isinstance(found, str):
        raise ValueError(f"it {found}")
    return found


def _small(shapes: Sequence[Case]) -> list[Case]:
    sizes = [(case.batch * (case.length or 1), index) for index, case in enumerate(shapes)]
    small = [shapes[i] for size, i in sizes if size <= _MOST_POSITIONS]
    return small[:3] or [shapes[min(sizes)[1]]]


def _not_run(why: str) -> Check:
    return Check(_NAME, "numeric", None, f"not run: {why}")
