"""Check that weights in number formats stay in them when ONNX Runtime opens the file.

Every weight is looked up by value in the optimised graph: the codes that a kernel reads there,
dequantised, must equal the network's weight. A weight that a session has turned into floats costs
the memory and the time of a dense one, so that only exact products of 8-bit weights may ask for it
(graph/quantised/folded_matmul.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lrcompress.export.verify.layer_use import layer_use, tensors_used
from lrcompress.export.verify.optimised_graph import OptimisedGraph
from lrcompress.export.verify.result import Check, Subject, listed
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.graph.stored_constants import stored_constants
from lrcompress.graph.weight_keys import content_key
from lrcompress.number_formats import CastFormat
from lrcompress.structures.stored_codes import StoredWeight

_NAME = "formats"
_FOLDED = "the file, floats in memory"


@dataclass(frozen=True)
class _Found:
    """Where the weights are: (format, operator) -> number, and the names of those that are not."""

    held: Counter[tuple[str, str]]
    dequantised: tuple[str, ...]  # when the file is opened
    unfused: tuple[str, ...]  # dequantised in every run, though their product has a kernel
    missing: tuple[str, ...]


def formats_check(subject: Subject, optimised: OptimisedGraph) -> tuple[Check, ...]:
    """Return the check of the formats; none for a network without stored weights."""
    stored = _in_graph(subject)
    if not subject.stored:
        return ()
    found = _found(subject, optimised, stored)
    missing, constant = _read_no_input(subject, found.missing)
    problems = []
    if found.dequantised:
        problems.append(f"floats again when the file is opened: {listed(found.dequantised)}")
    if found.unfused:
        problems.append(f"dequantised in every run: {listed(found.unfused)}")
    if problems:
        problems.append("export with --operators contrib")
    if missing:
        problems.append(f"not in the graph as stored: {listed(missing)}; export again")
    parts = [f"{count} {format} in {where}" for (format, where), count in found.held.items()]
    numbers = {
        "held": {f"{format} in {where}": n for (format, where), n in found.held.items()},
        "dequantised": list(found.dequantised),
        "unfused": list(found.unfused),
        "missing": list(missing),
    }
    if problems:
        return (Check(_NAME, "graph", False, "; ".join([*problems, *parts]), numbers),)
    total = sum(found.held.values())
    detail = f"all {total} stored weights are in it as stored: {', '.join(parts)}"
    if constant:
        detail += f"; computed once, when the file is opened: {listed(constant)}"
    return (Check(_NAME, "graph", True, detail, numbers),)


def _in_graph(subject: Subject) -> list[StoredWeight]:
    """Return the stored weights that an output depends on."""
    module, batch = subject.reference
    used = tensors_used(module, batch)
    own = dict(module.named_parameters(remove_duplicate=False))
    return [one for one in subject.stored if used is None or id(own[one.name]) in used]


def _found(subject: Subject, optimised: OptimisedGraph, stored: list[StoredWeight]) -> _Found:
    held: Counter[tuple[str, str]] = Counter()
    dequantised, unfused, missing = [], [], []
    casts = [weight for weight in stored if isinstance(weight.format, CastFormat)]
    kept = _kept_floats(subject) if casts else frozenset()
    for weight in casts:
        form = str(weight.format), content_key(weight.values.float().numpy())
        if form in kept or str(weight.format) in ("fp32", subject.precision):
            held[str(weight.format), "initializers"] += 1
        else:
            missing.append(weight.name)
    folded = {parameter_name(r.name) for r in subject.read_weights if r.operator == "MatMul"}
    for weight in stored:
        if weight.codes is None:
            continue
        key = optimised.stored_keys[weight.name]
        readers = optimised.in_codes.get(key, [])
        if any(one.unfused for one in readers):
            unfused.append(weight.name)
        elif readers:
            operators = " and ".join(sorted({one.operator for one in readers}))
            held[str(weight.format), operators] += 1
        elif key in optimised.float_keys and weight.name in folded:
            held[str(weight.format), _FOLDED] += 1
        elif key in optimised.float_keys:
            dequantised.append(weight.name)
        else:
            missing.append(weight.name)
    return _Found(held, tuple(dequantised), tuple(unfused), tuple(missing))


def _kept_floats(subject: Subject) -> frozenset[tuple[str, str]]:
    """Return the dtype and the key of every 16-bit constant of the file."""
    names = {"float16": "fp16", "bfloat16": "bf16"}
    return frozenset(
        (names[one.dtype], content_key(one.tensor.numpy().astype("float32")))
        for one in stored_constants(subject.expanded)
        if one.dtype in names
    )


def _read_no_input(
    subject: Subject, missing: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the missing weights into lost ones, and those of layers that read only constants."""
    if not missing:
        return (), ()
    module, batch = subject.reference
    owners = {name: name.rpartition(".")[0] for name in missing}
    use = layer_use(module, [owner for owner in owners.values() if owner], batch)
    constant = tuple(name for name, owner in owners.items() if owner in use.constant)
    return tuple(name for name in missing if name not in constant), constant
