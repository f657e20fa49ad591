"""Why a layer is left alone."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from lrcompress.layers.kind import RECURRENT, is_convertible, layer_kind
from lrcompress.layers.matrix import matrix_of_kind, weight_of

_COMPUTED = "its weight is computed from other parameters (a norm, pruning, quantisation)"


def leave_alone_(layer: nn.Module, reason: str) -> None:
    """Make `describe` list the layer as left alone for this reason; "" removes the mark."""
    if reason:
        layer._lrcompress_reason = reason  # type: ignore[assignment]  # a string, not a tensor
    elif "_lrcompress_reason" in vars(layer):
        del layer._lrcompress_reason


def reason_to_leave(layer: nn.Module, users: list[nn.Module]) -> str | None:
    kind = layer_kind(layer)
    told = vars(layer).get("_lrcompress_reason")
    if told:
        return str(told)
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
    if min(matrix_of_kind(layer, kind).shape[-2:]) < 2:
        return "a weight with a single row or column has no smaller rank"
    return None


def reasons_from_outside(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Return reasons that lie outside of the layers, by the layer's name."""
    return {
        **_weights_read_by_parent(modules),
        **_within_compiled(modules),
        **_with_global_hooks(modules),
    }


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
