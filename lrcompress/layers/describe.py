"""Which layers of a network can be compressed, and what is left alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod

from torch import nn
from torch.nn.parameter import is_lazy

from lrcompress.errors import ModelError
from lrcompress.layers.kind import Kind, is_matrix, layer_kind
from lrcompress.layers.matrix import weight_of
from lrcompress.layers.reasons import reason_to_leave, reasons_from_outside


@dataclass(frozen=True)
class LayerSpec:
    """One weight that may be compressed. Counts are scalars of the weight, without the bias."""

    name: str
    kind: Kind
    out_features: int  # m, per group
    in_features: int  # n, per group
    groups: int
    bias: bool
    tied: tuple[str, ...] = ()  # other layers that share this weight (output heads)
    kernel: tuple[int, ...] = ()  # kernel size of a convolution
    stride: tuple[int, ...] = ()
    shared_bias: bool = False  # with another module, so it must not change for this layer only

    @property
    def weight_params(self) -> int:
        return self.groups * self.out_features * self.in_features

    @property
    def break_even_rank(self) -> int:
        """The largest rank whose two factors hold fewer scalars than the weight: r(m+n) < mn."""
        return (self.out_features * self.in_features - 1) // (self.out_features + self.in_features)

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations per token, image patch or output pixel (2 per multiply-add).

        A lookup costs nothing, a tied head costs one product.
        """
        product = 2 * self.weight_params
        own = 0 if self.kind == "embedding" else product
        return own + product * len(self.tied)


@dataclass(frozen=True)
class LeftAlone:
    """Parameters to which no structure applies, and the reason."""

    name: str
    kind: str
    params: int
    reason: str
    matrix_params: int = 0  # those in weights with two or more axes, not in norms and biases


@dataclass(frozen=True)
class ModelLayers:
    layers: tuple[LayerSpec, ...]
    left_alone: tuple[LeftAlone, ...]
    total_params: int  # each shared parameter counted once

    def __getitem__(self, name: str) -> LayerSpec:
        for spec in self.layers:
            if spec.name == name:
                return spec
        raise KeyError(name)


def describe(module: nn.Module) -> ModelLayers:
    """List the layers of `module` that may be compressed and the parameters that are left alone.

    Raises:
        ModelError: a weight was declared but never loaded (on the meta device, or lazy).
    """
    owners: dict[int, list[str]] = defaultdict(list)
    modules: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        modules[name] = child
        for parameter in child.parameters(recurse=False):
            if parameter.is_meta or is_lazy(parameter):
                where = name or type(child).__name__
                raise ModelError(f"{where}: its weights are not loaded; load them before profiling")
            owners[id(parameter)].append(name)

    known = reasons_from_outside(modules)
    layers: list[LayerSpec] = []
    left_alone: list[LeftAlone] = []
    seen: set[int] = set()
    for name, child in modules.items():
        own = [p for p in child.parameters(recurse=False) if id(p) not in seen]
        if not own:
            continue
        weight = getattr(child, "weight", None)
        names = owners[id(weight)] if isinstance(weight, nn.Parameter) else [name]
        reason = known.get(name) or reason_to_leave(child, [modules[n] for n in names])
        seen.update(id(p) for p in own)
        rest = [p for p in own if not (p is weight and reason is None)]
        if len(rest) < len(own):
            spec = _spec(name, child, tuple(n for n in names if n != name))
            shared = len(owners[id(getattr(child, "bias", None))]) > 1
            layers.append(replace(spec, shared_bias=shared))
            rest = [p for p in rest if p is not getattr(child, "bias", None)]
        if rest:
            params = sum(p.numel() for p in rest)
            embedding = next((spec.name for spec in layers if name in spec.tied), None)
            if embedding is not None:
                reason = f"the bias of an output head that is tied to {embedding}"
            matrices = sum(p.numel() for p in rest if is_matrix(p))
            kind = type(child).__name__
            left_alone.append(LeftAlone(name, kind, params, reason or "no matrix", matrices))
    total = sum(p.numel() for p in module.parameters())
    return ModelLayers(tuple(layers), tuple(left_alone), total)


def _spec(name: str, layer: nn.Module, tied: tuple[str, ...]) -> LayerSpec:
    kind = layer_kind(layer)
    assert kind is not None
    weight = weight_of(layer)
    bias = getattr(layer, "bias", None) is not None
    if kind == "linear":
        return LayerSpec(name, kind, weight.shape[0], weight.shape[1], 1, bias, tied)
    if kind in ("transposed_linear", "embedding"):
        return LayerSpec(name, kind, weight.shape[1], weight.shape[0], 1, bias, tied)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    m, n = weight.shape[0] // layer.groups, prod(weight.shape[1:])
    kernel, stride = tuple(layer.kernel_size), tuple(layer.stride)
    return LayerSpec(name, kind, m, n, layer.groups, bias, tied, kernel, stride)
