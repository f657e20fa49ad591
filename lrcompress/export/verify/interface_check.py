"""Check the names, number and order of a graph's inputs and outputs.

Our own files must have exactly the network's outputs, in the same order. A file from another
exporter may omit secondary outputs (a pooler's) or add outputs that the network lacks (a pooled
embedding). Those cannot be verified, so the check neither passes nor fails. The network's main
output is always required.
"""

from __future__ import annotations

import onnx

from lrcompress.export.export_onnx import PRODUCER
from lrcompress.export.io_matching import Wiring
from lrcompress.export.verify.result import Check
from lrcompress.messages import label, listed
from lrcompress.network.outputs import AUXILIARY, KNOWN

_MOST = 5


def interface(graph: onnx.ModelProto, wiring: Wiring) -> Check:
    own = graph.producer_name == PRODUCER
    wrong: list[str] = []
    doubts: list[str] = []
    notes: list[str] = []
    if wiring.unknown_inputs:
        names = listed(wiring.unknown_inputs, _MOST)
        wrong.append(f"the graph asks for {names}, which the data lacks")
    if wiring.unused_inputs:
        notes.append(f"the graph does not take {listed(wiring.unused_inputs, _MOST)}")
    pairs = {**wiring.inputs, **wiring.outputs}
    renamed = [f"{label(a)} is {label(b)}" for a, b in pairs.items() if a != b]
    if renamed:
        notes.append(f"matched by kind: {', '.join(renamed[:_MOST])}")
    if wiring.uncompared_outputs:
        names = listed(wiring.uncompared_outputs, _MOST)
        (wrong if own else doubts).append(f"not compared, as the network has no output {names}")
    if wiring.absent_outputs:
        main = main_output(wiring.expected_outputs)
        names = listed(wiring.absent_outputs, _MOST)
        lost = own or main in wiring.absent_outputs or not wiring.outputs
        (wrong if lost else doubts).append(f"the graph lacks the network's output {names}")
    elif own and not wiring.in_order:
        names = listed(tuple(wiring.outputs), _MOST)
        wrong.append(f"the outputs are in another order than the network's: {names}")
    if not wiring.outputs:
        wrong.append("none of its outputs is one of the network's")
    plain = f"inputs {listed(tuple(wiring.inputs), _MOST)}; "
    plain += f"outputs {listed(tuple(wiring.outputs), _MOST)}"
    passed = False if wrong else None if doubts else True
    return Check("interface", "graph", passed, "; ".join([*wrong, *doubts, *notes]) or plain)


def main_output(names: tuple[str, ...]) -> str:
    """Return the main output: the first with a standard name, else the first non-auxiliary one."""
    known = [name for name in KNOWN if name in names]
    results = [name for name in names if name not in AUXILIARY]
    return (known or results or list(names))[0]
