"""Check a graph's inputs and outputs: their names, number and order, and the sizes it accepts.

Our own files must have exactly the network's outputs, in the same order. A file from another
exporter may omit secondary outputs (a pooler's) or add outputs that the network lacks (a pooled
embedding). Those cannot be verified, so the check neither passes nor fails. The network's main
output is always required.
"""

from __future__ import annotations

import onnx
import torch
from torch import nn

from lrcompress.export.axis_metadata import fixed_axes, malformed
from lrcompress.export.export_onnx import PRODUCER
from lrcompress.export.forward import copied
from lrcompress.export.io_matching import Wiring
from lrcompress.export.parity_inputs import Case, draw
from lrcompress.export.verify.parity import Comparison
from lrcompress.export.verify.result import NAMED, Check, Subject, listed
from lrcompress.messages import label
from lrcompress.network.batches import Batch
from lrcompress.network.outputs import AUXILIARY, KNOWN


def interface(graph: onnx.ModelProto, wiring: Wiring) -> Check:
    own = graph.producer_name == PRODUCER
    wrong: list[str] = []
    doubts: list[str] = []
    notes: list[str] = []
    if wiring.unknown_inputs:
        names = listed(wiring.unknown_inputs)
        wrong.append(f"the graph needs {names}, which the data lacks")
    if wiring.unused_inputs:
        notes.append(f"the graph does not take {listed(wiring.unused_inputs)}")
    pairs = {**wiring.inputs, **wiring.outputs}
    renamed = [f"{label(a)} is {label(b)}" for a, b in pairs.items() if a != b]
    if renamed:
        notes.append(f"matched by kind: {', '.join(renamed[:NAMED])}")
    if wiring.uncompared_outputs:
        names = listed(wiring.uncompared_outputs)
        (wrong if own else doubts).append(f"not compared, as the network has no output {names}")
    if wiring.absent_outputs:
        main = main_output(wiring.expected_outputs)
        names = listed(wiring.absent_outputs)
        lost = own or main in wiring.absent_outputs or not wiring.outputs
        (wrong if lost else doubts).append(f"the graph lacks the network's output {names}")
    elif own and not wiring.in_order:
        names = listed(tuple(wiring.outputs))
        wrong.append(f"the outputs are in another order than the network's: {names}")
    if not wiring.outputs:
        wrong.append("none of its outputs is one of the network's")
    plain = f"inputs {listed(tuple(wiring.inputs))}; "
    plain += f"outputs {listed(tuple(wiring.outputs))}"
    passed = False if wrong else None if doubts else True
    return Check("interface", "graph", passed, "; ".join([*wrong, *doubts, *notes]) or plain)


def main_output(names: tuple[str, ...]) -> str:
    """Return the main output: the first with a standard name, else the first non-auxiliary one."""
    known = [name for name in KNOWN if name in names]
    results = [name for name in names if name not in AUXILIARY]
    return (known or results or list(names))[0]


def shapes_check(subject: Subject, comparison: Comparison) -> Check:
    """Check whether the graph fixes a batch or length for which the network accepts other sizes.

    Other axes, such as those of an image, are not tried.
    """
    passed, detail = _sizes(subject, comparison)
    if bad := malformed(subject.metadata):
        detail += f"; malformed and ignored: its {' and '.join(bad)}"
    return Check("shapes", "graph", passed, detail)


def _sizes(subject: Subject, comparison: Comparison) -> tuple[bool | None, str]:
    """Return whether the check passes, and the detail."""
    module, _ = subject.reference
    requested = fixed_axes(subject.metadata) or {}
    names = {theirs: ours for ours, theirs in comparison.wiring.inputs.items()}
    narrow: list[tuple[int, str]] = []  # axis, and its description
    by_export: list[str] = []
    for name, axes in comparison.fixed.items():
        sequence = comparison.batch[name].dim() == 2
        sequence &= not comparison.batch[name].is_floating_point()
        for axis, size in axes.items():
            if axis == 0 or (axis == 1 and sequence):
                where = f"axis {axis} of {label(names[name])} to {size}"
                if axis in requested.get(names[name], ()):
                    by_export.append(where)
                else:
                    narrow.append((axis, where))
    open_ = [where for axis, where in narrow if _takes_another(module, comparison, axis)]
    if open_:
        fixed = ", ".join(open_)
        return None, (
            f"the graph fixes {fixed}, but the network accepts other sizes; no other size was run"
        )
    if narrow:
        fixed = ", ".join(where for _, where in narrow)
        return True, f"the graph fixes {fixed}, as the network does"
    if by_export:
        return True, f"fixed by the export, as it notes: {', '.join(by_export)}"
    return True, "batch and length are free wherever the data has them"


def _takes_another(module: nn.Module, comparison: Comparison, axis: int) -> bool:
    """Whether the network runs with one more row, or one more or fewer positions, than fixed."""
    fixed = comparison.fixed
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), 2)
    length = max((axes[1] for axes in fixed.values() if 1 in axes), default=None)
    generator = torch.Generator().manual_seed(comparison.seed)
    free: dict[str, dict[int, int]] = {name: {} for name in fixed}
    if axis == 0:
        free = {name: {a: n for a, n in axes.items() if a != 0} for name, axes in fixed.items()}
    candidates = [Case(rows + 1, length)] if axis == 0 else []
    if axis == 1 and length is not None:
        candidates = [Case(rows, n) for n in (length - 1, length + 1) if n > 0]
    return any(_runs(module, draw(comparison.batch, c, free, generator)) for c in candidates)


def _runs(module: nn.Module, batch: Batch) -> bool:
    try:
        with torch.no_grad():
            module(**copied(batch))
    except Exception:  # the network's own code, which may refuse the size
        return False
    return True
