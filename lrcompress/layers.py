"""Layer descriptions: which layers can be compressed, and how their weight reads as a matrix.

Every compressible layer is read as ``y = W x + b`` with ``W: (groups, m, n)``:

=================  =====================================  ==============================
kind               m, n (per group)                       x of one row
=================  =====================================  ==============================
linear             out_features, in_features              the input vector
transposed_linear  GPT-2's Conv1D stores W^T              the input vector
embedding          embedding_dim, num_embeddings          the one-hot token
conv1d, conv2d     out_channels/g, in_channels/g * prod k the patch under the kernel
=================  =====================================  ==============================
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lrcompress.errors import ModelError

Kind = Literal["linear", "transposed_linear", "embedding", "conv1d", "conv2d"]


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
        reason = known.get(name) or _reason_to_leave(child, [modules[n] for n in names])
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
            matrices = sum(p.numel() for p in rest if _is_matrix(p))
            kind = type(child).__name__
            left_alone.append(LeftAlone(name, kind, params, reason or "no matrix", matrices))
    total = sum(p.numel() for p in module.parameters())
    return ModelLayers(tuple(layers), tuple(left_alone), total)


def _spec(name: str, layer: nn.Module, tied: tuple[str, ...]) -> LayerSpec:
    kind = layer_kind(layer)
    assert kind is not None
    weight = _weight(layer)
    bias = getattr(layer, "bias", None) is not None
    if kind == "linear":
        return LayerSpec(name, kind, weight.shape[0], weight.shape[1], 1, bias, tied)
    if kind in ("transposed_linear", "embedding"):
        return LayerSpec(name, kind, weight.shape[1], weight.shape[0], 1, bias, tied)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    m, n = weight.shape[0] // layer.groups, prod(weight.shape[1:])
    kernel, stride = tuple(layer.kernel_size), tuple(layer.stride)
    return LayerSpec(name, kind, m, n, layer.groups, bias, tied, kernel, stride)


_CONVOLUTIONS: dict[Kind, type[nn.Conv1d | nn.Conv2d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
}


def layer_kind(layer: nn.Module) -> Kind | None:
    """The kind of a layer with torch's standard forward, or None."""
    forward = getattr(type(layer), "forward", None)  # TorchScript modules have none
    if forward is nn.Linear.forward:
        return "linear"
    if forward is nn.Embedding.forward:
        return "embedding"
    for kind, conv in _CONVOLUTIONS.items():
        inner = getattr(type(layer), "_conv_forward", None)  # a subclass may override only this
        if forward is conv.forward and inner is conv._conv_forward:
            return kind
    # transformers' Conv1D (GPT-2), recognised by name so that transformers need not be installed
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):
        return "transposed_linear"
    return None


def is_convertible(layer: nn.Module) -> bool:
    """Whether `convert_` examines the layer: it has a matrix and a forward of its own."""
    if type(layer).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return False  # a structure; converting it could restore the layer that it replaced
    if isinstance(layer, torch.jit.ScriptModule):
        return False
    if type(layer).forward is nn.MultiheadAttention.forward:
        return True
    if layer_kind(layer) is not None or isinstance(layer, _NEVER_CONVERTED):
        return False
    if any(True for child in layer.children() for _ in child.parameters()):
        return False
    return any(_is_matrix(p) for p in layer.parameters(recurse=False))


_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NEVER_CONVERTED = (
    *_RECURRENT,
    nn.modules.conv._ConvTransposeNd,
    nn.Conv3d,
    nn.Bilinear,
    parametrize.ParametrizationList,
)
_COMPUTED = "its weight is computed from other parameters (a norm, pruning, quantisation)"


def has_hooks(layer: nn.Module) -> bool:
    """Whether forward hooks or forward pre-hooks are registered on the layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


def share_hooks_(layer: nn.Module, replacement: nn.Module) -> nn.Module:
    """Make the replacement run the layer's hooks, and return the replacement.

    The hooks are shared, not copied: removing a hook by its handle removes it from both.
    """
    for table in _HOOKS:
        setattr(replacement, table, getattr(layer, table))
    return replacement


def leave_alone_(layer: nn.Module, reason: str) -> None:
    """Make `describe` list the layer as left alone for this reason; "" removes the mark."""
    if reason:
        layer._lrcompress_reason = reason  # type: ignore[assignment]  # a string, not a tensor
    elif "_lrcompress_reason" in vars(layer):
        del layer._lrcompress_reason


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and sum(size > 1 for size in parameter.shape) > 1


def _reason_to_leave(layer: nn.Module, users: list[nn.Module]) -> str | None:
    kind = layer_kind(layer)
    told = vars(layer).get("_lrcompress_reason")
    if told:
        return str(told)
    if isinstance(layer, _RECURRENT):
        count = getattr(layer, "num_layers", 1)
        depth = f"{count} layer{'s' * (count > 1)}"
        return f"recurrent weights of {type(layer).__name__}, {depth}, are not compressed yet"
    if isinstance(layer, parametrize.ParametrizationList):
        return _COMPUTED
    if kind is None:
        may = "; lrcompress.convert_(module, batch) may give it one" * is_convertible(layer)
        return f"{type(layer).__name__} has no matrix form here{may}"
    weight = _weight(layer)
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
    if min(_matrix(layer, kind).shape[-2:]) < 2:
        return "a weight with a single row or column has no smaller rank"
    return None


def _own_call(layer: nn.Module) -> str | None:
    """How calling the layer differs from calling its torch class, or None."""
    patched = [name for name in ("forward", "_conv_forward", "_call_impl") if name in vars(layer)]
    if patched:
        return f"its {patched[0]} was replaced on this one module"
    for name in ("__call__", "_call_impl", "_wrapped_call_impl"):
        if getattr(type(layer), name) is not getattr(nn.Module, name):
            return f"its class {type(layer).__name__} has a {name} of its own"
    return None


def _within_compiled(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Layers inside a torch.compile wrapper, which keeps calling the original module."""
    wrappers = [name for name, part in modules.items() if type(part).__name__ == "OptimizedModule"]
    reason = (
        "torch.compile's wrapper goes on to call the layer that it was given; give the model as it "
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


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _matrix(layer: nn.Module, kind: Kind) -> Tensor:
    weight = _weight(layer).detach()
    if kind == "linear":
        return weight[None]
    if kind in ("transposed_linear", "embedding"):
        return weight.mT[None]
    groups = int(getattr(layer, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def weight_matrix(layer: nn.Module) -> Tensor:
    """Return the weight as ``(groups, m, n)``, a view where possible.

    Raises:
        ModelError: the layer has no matrix form.
    """
    kind = layer_kind(layer)
    if kind is None:
        raise ModelError(f"{type(layer).__name__} has no matrix form; exclude the layer")
    return _matrix(layer, kind)


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input vectors that the weight matrix multiplies, as rows.

    The shape is ``(*positions, groups, n)``, or ``(*positions)`` for the token ids of an embedding.
    """
    kind = layer_kind(layer)
    if kind == "embedding":
        return x
    if kind in ("linear", "transposed_linear"):
        return x.unsqueeze(-2)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return _patches(layer, x)


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """(batch, channels, *size) -> (batch, positions, groups, n), n in the order of the weight."""
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    spatial = len(kernel)
    if x.dim() == spatial + 1:
        x = x[None]
    pads = list(layer._reversed_padding_repeated_twice)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, pads, mode=mode)
    if spatial == 1:
        x, kernel, dilation, stride = (
            x.unsqueeze(-2), (1, *kernel), (1, *dilation), (1, *stride)
        )  # fmt: skip
    columns = functional.unfold(x, kernel, dilation=dilation, stride=stride)
    batch, _, positions = columns.shape
    return columns.reshape(batch, layer.groups, -1, positions).permute(0, 3, 1, 2)


def output_rows(layer: nn.Module, y: Tensor) -> Tensor:
    """Return an output or its gradient as ``(*positions, groups, m)``, in `input_rows` order."""
    kind = layer_kind(layer)
    if kind in ("linear", "transposed_linear", "embedding"):
        return y.unsqueeze(-2)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if y.dim() == len(layer.kernel_size) + 1:
        y = y[None]
    batch = y.shape[0]
    return y.reshape(batch, layer.groups, y.shape[1] // layer.groups, -1).permute(0, 3, 1, 2)


def replace_(module: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` at every place where the submodule `name` is registered.

    ``named_children`` skips duplicates within one parent, so ``parent._modules`` is searched.
    """
    target = module.get_submodule(name)
    for parent in list(module.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is target:
                parent._modules[attribute] = replacement


_CHECKED_AT_ONCE = 2**24


@torch.no_grad()
def first_nonfinite(module: nn.Module) -> str | None:
    """Name of the first parameter that holds NaN or infinity, or buffer that holds NaN, or None.

    Infinities in buffers are allowed, as in attention masks.
    """
    for name, parameter in module.named_parameters():
        parts = torch.split(
            parameter.flatten(), _CHECKED_AT_ONCE
        )  # in parts, as the check allocates temporary tensors
        if parameter.is_floating_point() and not all(bool(torch.isfinite(p).all()) for p in parts):
            return name
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            return name
    return None
