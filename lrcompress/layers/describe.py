"""Which layers of a network can be compressed, and why others are left alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lrcompress.errors import ModelError
from lrcompress.layers.kind import RECURRENT, Kind, is_convertible, is_matrix, layer_kind
from lrcompress.layers.matrix import weight_matrix, weight_of

_COMPUTED = "its weight is computed from other parameters (a norm, pruning, quantisation)"


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
        return {spec.name: spec for spec in self.layers}[name]


def describe(module: nn.Module, *, formats: bool = False) -> ModelLayers:
    """List the layers of `module` that may be compressed and the parameters that are left alone.

    formats: list weights with a single row or column too: they have no smaller rank, but number
        formats store them in fewer bytes.

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

    known = {
        **_weights_read_by_parent(modules),
        **_within_compiled(modules),
        **_with_global_hooks(modules),
    }
    layers: list[LayerSpec] = []
    left_alone: list[LeftAlone] = []
    seen: set[int] = set()
    for name, child in modules.items():
        own = [p for p in child.parameters(recurse=False) if id(p) not in seen]
        if not own:
            continue
        weight = getattr(child, "weight", None)
        names = owners[id(weight)] if isinstance(weight, nn.Parameter) else [name]
        reason = known.get(name) or _reason_to_leave(
            child, [modules[n] for n in names], formats=formats
        )
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


def leave_alone_(layer: nn.Module, reason: str) -> None:
    """Make `describe` list the layer as left alone for this reason; "" removes the mark."""
    if reason:
        layer._lrcompress_reason = reason  # type: ignore[assignment]  # a string, not a tensor
    elif "_lrcompress_reason" in vars(layer):
        del layer._lrcompress_reason


def _reason_to_leave(layer: nn.Module, users: list[nn.Module], *, formats: bool) -> str | None:
    kind = layer_kind(layer)
    mark = vars(layer).get("_lrcompress_reason")
    if mark:
        return str(mark)
    if isinstance(layer, RECURRENT):
        count = getattr(layer, "num_layers", 1)
        depth = f"{count} layer{'s' * (count > 1)}"
        return f"recurrent weights of {type(layer).__name__}, {depth}, are not compressed yet"
    if isinstance(layer, parametrize.ParametrizationList):
        return _COMPUTED
    if kind is None:
        may = "; lrcompress.convert_(module, batch) may give it one" * is_convertible(layer)
        return f"{type(layer).__name__} has no matrix form here{may}"
    weight = weight_of(layer)
    if parametrize.is_parametrized(layer) or not isinstance(weight, nn.Parameter):
        return _COMPUTED
    changed = _own_call(layer)
    if changed:
        return changed
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return "an embedding with max_norm or sparse gradients"
    if len(users) > 1:
        heads = users[1:]
        if kind != "embedding" or any(layer_kind(h) != "linear" for h in heads):
            return "its weight is shared by layers of other kinds"
    if not formats and min(weight_matrix(layer).shape[-2:]) < 2:
        return "a weight with a single row or column has no smaller rank"
    return None


def _own_call(layer: nn.Module) -> str | None:
    """How calling the layer differs from calling its torch class, or None."""
    patched = [name for name in ("forward", "_conv_forward", "_call_impl") if name in vars(layer)]
    if patched:
        return f"its {patched[0]} was replaced on this one module"
    for name in ("__call__", "_call_impl", "_wrapped_call_impl"):
        if getattr(type(layer), name) is not getattr(nn.Module, name):
            return f"its class {type(layer).__name__} overrides {name}"
    return None


def _within_compiled(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Layers inside a torch.compile wrapper, which keeps calling the original module."""
    wrappers = [name for name, part in modules.items() if type(part).__name__ == "OptimizedModule"]
    reason = (
        "torch.compile's wrapper would still call the original layer; give the model as it "
        "was before torch.compile"
    )
    return {
        name: reason
        for name in modules
        if any(name.startswith(f"{wrapper}." if wrapper else "_orig_mod") for wrapper in wrappers)
    }


def _with_global_hooks(modules: dict[str, nn.Module]) -> dict[str, str]:
    tables = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    if not any(tables):
        return {}
    reason = (
        "a hook for all modules is registered (register_module_forward_hook), which would run for "
        "the parts of a replacement too; remove the hook"
    )
    return dict.fromkeys(modules, reason)


def _weights_read_by_parent(modules: dict[str, nn.Module]) -> dict[str, str]:
    """out_proj layers: nn.MultiheadAttention reads their weight and never calls their forward."""
    return {
        f"{name}.out_proj" if name else "out_proj": "nn.MultiheadAttention reads its weight"
        for name, module in modules.items()
        if isinstance(module, nn.MultiheadAttention)
    }
