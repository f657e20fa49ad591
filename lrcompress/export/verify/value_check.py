"""Check that the graph contains the network's values: every factor, table, bias and norm.

Parity sees a wrong weight only through the outputs for the drawn inputs. It misses a table row that
no input reads, or a small error in an inner layer. The graph is examined as written, before ONNX
Runtime fuses anything, so that equal weights have equal values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.export.export_onnx import PRODUCER
from lrcompress.export.precision import TORCH_DTYPES
from lrcompress.export.verify.factor_check import structured_layers
from lrcompress.export.verify.layer_use import layer_use, tensors_used
from lrcompress.export.verify.norm_folding import FoldedNorm, folded_norms
from lrcompress.export.verify.result import Check, Kind, Subject, listed
from lrcompress.export.verify.tensor_matching import Constants, Difference, Matches, Target
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.graph.stored_constants import Stored, stored_constants

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
_DEFAULT_EPSILON = 1e-5  # ONNX's default for the attribute
_SINGLE = 2.0**-22  # relative tolerance, because attributes are float32


def values_check(subject: Subject) -> Check:
    """Compare every tensor that an output depends on with the constants of the graph."""
    module, batch = subject.reference
    stored = stored_constants(subject.expanded)
    named = _named(stored, module) if subject.graph.producer_name == PRODUCER else {}
    constants = Constants(stored, subject.precision, named)
    used = tensors_used(module, batch)
    targets = [
        Target(name, tensor.detach())
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.numel() and _counts(tensor, used)
    ]
    matches = constants.match(targets)
    folds = _folded(module, constants, matches)
    differing = [one for one in matches.differing if one.tensor not in folds.absorbed]
    buffers = {name for name, _ in module.named_buffers()}
    layers = structured_layers(module)
    factors = {id(f) for layer in layers for f in layer.factors}
    tensors = dict(module.named_parameters())
    absent = [n for n in matches.absent if n not in folds.absorbed | buffers]
    absent = [n for n in absent if not _changes_nothing(tensors[n])]
    if any(id(tensors[n]) in factors for n in absent):
        # The graph may store a layer's output for a constant input (say, relative positions)
        use = layer_use(module, (layer.name for layer in layers), batch)
        open_ = [layer for layer in layers if layer.name not in use.constant]
        factors = {id(f) for layer in open_ for f in layer.factors}
    return _check(
        found=len({**matches.found, **folds.found}),
        differing=list(map(str, (*differing, *folds.differing))),
        absent=[n for n in absent if id(tensors[n]) not in factors],
        absent_factors=[n for n in absent if id(tensors[n]) in factors],
        epsilons=_epsilons(module, matches.found),
    )


def _check(
    found: int,
    differing: list[str],
    absent: list[str],
    absent_factors: list[str],
    epsilons: list[str],
) -> Check:
    """Return the result of the check.

    found: the number of tensors that are stored unchanged.
    absent, absent_factors: tensors that outputs depend on but that were not found; the latter are
        factors of a structure.
    epsilons: norms with a wrong epsilon or axis.
    """
    numbers = {
        "found": found,
        "differing": differing,
        "absent": [*absent_factors, *absent],
        "epsilons": epsilons,
    }
    problems = [*differing, *epsilons]
    kind: Kind = "numeric" if problems else "graph"  # folded factors compute the same
    if absent_factors:
        problems.append(f"not in the graph: {listed(absent_factors)}")
    if problems:
        detail = f"{len(problems)} problems: " if len(problems) > 1 else ""
        return Check("values", kind, False, detail + "; ".join(problems[:3]), numbers)
    if absent:
        detail = (
            f"{found} of {found + len(absent)} tensors are equal, value by value; {listed(absent)} "
            "cannot be compared: the graph holds something computed from them"
        )
        return Check("values", "numeric", None, detail, numbers)
    detail = f"all {found} tensors are in it, equal value by value"
    return Check("values", "numeric", True, detail, numbers)


@dataclass(frozen=True, eq=False)
class _Folds:
    found: Mapping[str, Stored]
    differing: tuple[Difference, ...]
    absorbed: frozenset[str]


def _folded(module: nn.Module, constants: Constants, matches: Matches) -> _Folds:
    """Look for weights that are not stored unchanged, with a norm folded into them."""
    found: dict[str, Stored] = {}
    differing: list[Difference] = []
    absorbed: set[str] = set()
    changed = [difference.tensor for difference in matches.differing]
    for name in dict.fromkeys((*changed, *matches.absent)):
        near: FoldedNorm | None = None
        for folded in folded_norms(module, name, TORCH_DTYPES[constants.precision]):
            weight = constants.look_up(folded.weight)
            if isinstance(weight, Stored):
                near = folded
                break
            if weight is not None and name not in changed:
                near = near or folded
        if near is not None:
            absorbed |= near.absorbed
            for target in (near.weight, near.bias):
                result = constants.look_up(target)
                if isinstance(result, Stored):
                    found[target.name] = result
                elif result is not None:
                    differing.append(result)
    return _Folds(found, tuple(differing), frozenset(absorbed))


def _counts(tensor: Tensor, used: frozenset[int] | None) -> bool:
    """Whether to look for the tensor. Use of integer tensors is unknown: they have no gradient."""
    if not tensor.is_floating_point():
        return tensor.dtype in (torch.int64, torch.int32)
    return used is None or id(tensor) in used


def _changes_nothing(tensor: Tensor) -> bool:
    """Whether it may be a bias of zeros or a scale of ones, which an exporter omits."""
    return bool((tensor == 0).all() or (tensor == 1).all())


def _named(stored: tuple[Stored, ...], module: nn.Module) -> dict[str, list[Stored]]:
    """Return the constants that our exporter named after each parameter, plain before transposed.

    Tied parameters are listed under their first name.
    """
    first: dict[int, str] = {}
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    names = {name: first.setdefault(id(t), name) for name, t in tensors}
    found: dict[str, list[Stored]] = {}
    for one in sorted(stored, key=lambda one: one.name not in names):
        name = names.get(one.name, names.get(parameter_name(one.name)))
        if name is not None:
            found.setdefault(name, []).append(one)
    return found


def _epsilons(module: nn.Module, found: Mapping[str, Stored]) -> list[str]:
    """Return errors of norm nodes, which are found by their weight.

    A node is wrong if no norm with that weight has its epsilon, or if it normalises other axes than
    its weight has.
    """
    owners: dict[int, list[tuple[str, float]]] = {}
    nodes: dict[int, Any] = {}
    for name, stored in found.items():
        owner = name.rpartition(".")[0]
        part = module.get_submodule(owner)
        own = next((getattr(part, e) for e in _EPSILONS if hasattr(part, e)), None)
        if isinstance(own, float):
            for node in stored.norms:
                nodes[id(node)] = node
                owners.setdefault(id(node), []).append((owner, own))
    wrong = []
    for key, candidates in owners.items():
        if not _over_last_axes(nodes[key]):
            wrong.append(f"{candidates[0][0]} is over other axes than its weight has")
        attribute = nodes[key].attributes.get("epsilon")
        theirs = _DEFAULT_EPSILON if attribute is None else float(attribute.value)
        if all(abs(theirs - own) > _SINGLE * own for _, own in candidates):
            owner, own = candidates[0]
            wrong.append(f"{owner} has an epsilon of {theirs:.3g} but the network has {own:.3g}")
    return wrong


def _over_last_axes(node: Any) -> bool:
    """Whether a layer norm covers exactly the axes of its weight.

    ONNX Runtime fuses an Add into a layer norm without checking its axis.
    """
    axis, rank = node.attributes.get("axis"), node.inputs[0].shape
    if node.op_type != "LayerNormalization" or axis is None or rank is None:
        return True
    axes = len(node.inputs[1].shape)
    return axis.value in (-axes, len(rank) - axes)
