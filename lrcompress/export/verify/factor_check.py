"""Check that the optimised graph keeps the factors.

ONNX Runtime may fold a product of constants back into the dense weight. Weights are recognised by
value, in either orientation, so layers of equal shape are not confused. A factor that a fusion has
changed (a scale folded in, a convolution's channels padded into blocks) is then recognised by its
shape among the remaining weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from lrcompress.export.forward import copy_structure
from lrcompress.export.precision import TORCH_DTYPES
from lrcompress.export.verify.layer_use import layer_use
from lrcompress.export.verify.optimised_graph import OptimisedGraph
from lrcompress.export.verify.result import Check, Subject, listed
from lrcompress.graph.weight_keys import Shape, content_key, rounded, shape_key

_STRUCTURES = "lrcompress.structures."


@dataclass(frozen=True, eq=False)
class StructuredLayer:
    """A layer that represents a dense weight by factors."""

    name: str
    dense_shape: Shape
    factors: tuple[Tensor, ...]  # each has two or more axes


@dataclass(frozen=True)
class FactorReport:
    layers: int  # an embedding and the heads tied to it count as one
    factors: int  # distinct ones; a factor shared by two layers counts once
    missing: tuple[str, ...]  # layers with a factor that is not in the graph
    folded: tuple[str, ...]  # layers whose dense shape occurs in the graph without explanation
    unused: tuple[str, ...] = ()  # layers that no output depends on; not checked
    constant: tuple[str, ...] = ()  # layers that read no input; computed when the file is opened


def structured_layers(module: nn.Module) -> tuple[StructuredLayer, ...]:
    """Return the layers of `module` that are modules of a structure."""
    # Modules in structures/ have a property `weight`, the dense weight. It is evaluated on the meta
    # device, where it has a shape but no values
    empty = copy_structure(module, lambda _, tensor: tensor.to("meta"))
    found: dict[str, StructuredLayer] = {}
    for name, part in empty.named_modules():  # parents come before their children
        if (
            any(base.__module__.startswith(_STRUCTURES) for base in type(part).__mro__)
            and isinstance(getattr(type(part), "weight", None), property)
            and not any(not x or name.startswith(f"{x}.") for x in found)  # a part of a sum
        ):
            factors = tuple(p for p in module.get_submodule(name).parameters() if p.dim() > 1)
            found[name] = StructuredLayer(name, tuple(part.weight.shape), factors)
    return tuple(found.values())


def factors_kept(
    initializers: Iterable[NDArray[Any]],
    module: nn.Module,
    layers: tuple[StructuredLayer, ...],
    precision: str,
) -> FactorReport:
    """Compare the weights of an optimised graph with the module that it was exported from.

    initializers: the graph's floating-point weights with two or more axes.
    precision: precision of the graph; the module's weights are rounded to it first.
    """
    dtype = TORCH_DTYPES[precision]
    keys = {id(tensor): content_key(rounded(tensor, dtype)) for tensor in _matrices(module)}
    own = {keys[id(tensor)]: tuple(tensor.shape) for tensor in _matrices(module)}
    factors = {keys[id(f)]: tuple(f.shape) for layer in layers for f in layer.factors}
    found = {content_key(array): tuple(array.shape) for array in initializers}

    altered = Counter(shape_key(shape) for key, shape in found.items() if key not in own)
    missing = set()
    for key in sorted(factors.keys() - found.keys()):
        shape = shape_key(factors[key])
        if altered[shape] > 0:
            altered[shape] -= 1
        else:
            missing.add(key)
    # An altered weight is explained if it has the shape of a dense weight that is no longer found.
    for key, own_shape in own.items():
        if key not in found and key not in factors:
            altered[shape_key(own_shape)] -= 1
    return FactorReport(
        layers=len({frozenset(map(id, layer.factors)) for layer in layers}),
        factors=len(factors),
        missing=tuple(x.name for x in layers if any(keys[id(f)] in missing for f in x.factors)),
        folded=tuple(x.name for x in layers if altered[shape_key(x.dense_shape)] > 0),
    )


def _matrices(module: nn.Module) -> Iterable[Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() > 1 and tensor.is_floating_point():
            yield tensor


def factors_check(subject: Subject, optimised: OptimisedGraph | None = None) -> Check:
    """Check that the graph still contains the factors after all of ONNX Runtime's optimisations.

    Factors in codes count as their dequantised values.
    """
    module, batch = subject.reference
    structured = structured_layers(module)
    if not structured:
        return Check("factors", "graph", None, "the reference network has no factorised layer")
    use = layer_use(module, (layer.name for layer in structured), batch)
    layers = tuple(layer for layer in structured if layer.name in use.used)
    weights = (optimised or OptimisedGraph(subject)).weights()
    report = factors_kept(weights, module, layers, subject.precision)
    report = replace(report, unused=use.unused, constant=use.constant)
    parts = []
    if report.missing:
        parts.append(f"factors of {listed(report.missing)} are missing")
    if report.folded:
        parts.append(f"the graph has a dense weight again for {listed(report.folded)}")
    kept = not parts
    if kept:
        parts.append(f"all {report.factors} factors of {report.layers} layers are in it, optimised")
    if use.unused:
        parts.append(f"no output depends on {listed(use.unused)}")
    if use.constant:
        parts.append(f"computed once, when the file is opened: {listed(use.constant)}")
    return Check("factors", "graph", kept, "; ".join(parts), asdict(report))
