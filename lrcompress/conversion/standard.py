"""Finds the standard layer that computes the same as a custom layer, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from itertools import product as combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.conversion.comparison import (
    OTHER_SIZES,
    other_inputs,
    resized,
    same_in_training,
    same_output,
)
from lrcompress.conversion.conversion import Conversion
from lrcompress.conversion.observation import Call, Product, products_of
from lrcompress.conversion.wrapped_layer import PaddedConv, ScaledLayer, same_padding
from lrcompress.errors import ModelError
from lrcompress.network.agreement import output


@dataclass(frozen=True, eq=False)
class Found:
    conversion: Conversion
    layer: nn.Module


def standard_layer(
    name: str, layer: nn.Module, calls: Sequence[Call], *, shared: bool
) -> Found | str:
    """Return the standard layer that computes what `layer` computes, or why none does.

    shared: whether other modules hold its parameters, which then must not change.
    """
    inputs = [_only_input(call) for call in calls]
    x = inputs[0]
    if x is None or any(other is None for other in inputs):
        return "it is called with more than one tensor"
    first = Conversion(name, type(layer).__name__, "linear", tuple(x.shape))
    shown = _shown(layer, x)
    if isinstance(shown, str):
        return shown
    conversion = replace(first, became=shown.kind)
    if shown.kind in ("conv1d", "conv2d"):
        padding = _padding(layer, x, shown)
        if isinstance(padding, str):
            return padding
        conversion = replace(conversion, padding=padding[0], same_padding=padding[1])
    if not _weight_is_constant(layer, _made_up(conversion, layer), shown):
        return "its weight depends on its input"
    problem = _no_room(layer, shown, shared=shared)
    if problem:
        return problem
    tried = [t for t in (*inputs, *other_inputs(x, shown)) if t is not None]
    for guess in _guesses(conversion, layer, x):
        built = build(guess, layer)
        if all(same_output(layer, built, t) for t in tried):
            if not same_in_training(layer, x):
                return "it computes something else in training"
            return Found(guess, built)
    return f"its output is not that of {shown.kind} with the weight that it uses"


def build(conversion: Conversion, layer: nn.Module) -> nn.Module:
    """Build the new layer of a conversion from the original module alone.

    Raises:
        ModelError: the module does not compute this operation.
    """
    shown = _shown(layer, _made_up(conversion, layer))
    if isinstance(shown, str) or shown.kind != conversion.became:
        raise ModelError(
            f"{conversion.name}: is not a {conversion.became} any more; the model's code "
            "has changed"
        )
    built = _plain_layer(conversion, layer, shown)
    if conversion.scale is not None:
        built = ScaledLayer(built, conversion.scale)
    return built.train(layer.training)


def _made_up(conversion: Conversion, layer: nn.Module) -> Tensor:
    like = next(layer.parameters(recurse=False))
    dtype = torch.int64 if conversion.became == "embedding" else like.dtype
    return torch.zeros(conversion.input_shape, dtype=dtype, device=like.device)


def _only_input(call: Call) -> Tensor | None:
    values = [*call.args, *call.kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None


def _shown(layer: nn.Module, x: Tensor) -> Product | str:
    """Return the last standard operation of the layer's forward, or why there is none."""
    seen = output(lambda: products_of(lambda: layer(x)))
    if not isinstance(seen, list):
        return "its forward cannot be observed"
    if not seen:
        return "its forward calls no linear layer, lookup or convolution"
    last = seen[-1]
    assert isinstance(last, Product)
    return last if last.plain else "an embedding with max_norm or sparse gradients"


def _weight_is_constant(layer: nn.Module, other: Tensor, shown: Product) -> bool:
    """Whether the layer computes the same operation, with the same weight, on another input."""
    again = _shown(layer, other)
    if isinstance(again, str) or again.kind != shown.kind:
        return False
    if shown.bias is None or again.bias is None:
        same_bias = shown.bias is again.bias
    else:
        same_bias = torch.equal(shown.bias, again.bias)
    return same_bias and torch.equal(shown.weight, again.weight)


def _no_room(layer: nn.Module, shown: Product, *, shared: bool) -> str:
    """Return why a weight computed from parameters cannot replace them; "" if it can."""
    if not shown.weight.is_floating_point():
        return f"its weight is {shown.weight.dtype}, not floating point"
    if _parameter(layer, shown.weight) is not None:
        return ""
    if shared:
        return "its weight is computed from parameters that other modules hold too"
    if shown.weight.numel() > sum(p.numel() for p in layer.parameters()):
        return "its weight holds more numbers than the parameters that it is computed from"
    return ""


def _guesses(conversion: Conversion, layer: nn.Module, x: Tensor) -> list[Conversion]:
    """Return the conversions to try: the operation alone, with an added bias, and scaled."""
    guesses = [conversion]
    plain = build(conversion, layer)
    if getattr(plain, "bias", None) is None and conversion.became != "embedding":
        size = int(getattr(plain, "out_features", 0) or getattr(plain, "out_channels", 0))
        guesses += [
            replace(conversion, bias=name)
            for name, parameter in layer.named_parameters(recurse=False)
            if parameter.numel() == size and parameter.shape[-1:] == (size,)
        ]
    ours, theirs = output(lambda: plain(x)), output(lambda: layer(x))
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and ours.shape == theirs.shape:
        a, b = ours.double(), theirs.double()
        energy = float(a.square().sum())
        if ours.is_floating_point() and energy > 0:
            guesses.append(replace(conversion, scale=float((a * b).sum()) / energy))
    return guesses


def _plain_layer(conversion: Conversion, layer: nn.Module, shown: Product) -> nn.Module:
    weight = _as_parameter(layer, shown.weight)
    bias: nn.Parameter | None = None
    if conversion.bias:
        bias = layer.get_parameter(conversion.bias)
        bias = bias if bias.dim() == 1 else nn.Parameter(bias.detach().flatten())
    elif shown.bias is not None:
        bias = _as_parameter(layer, shown.bias)
    if shown.kind == "linear":
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        return _with(linear, weight, bias)
    if shown.kind == "embedding":
        rows, width = weight.shape
        table = nn.Embedding(rows, width, padding_idx=shown.padding_idx, device="meta")
        return _with(table, weight, None)
    return _conv(conversion, shown, weight, bias)


def _conv(
    conversion: Conversion, shown: Product, weight: nn.Parameter, bias: nn.Parameter | None
) -> nn.Module:
    make = nn.Conv1d if shown.kind == "conv1d" else nn.Conv2d
    before, after = conversion.padding[::2], conversion.padding[1::2]
    standard = not conversion.same_padding and before == after
    conv = make(
        weight.shape[1] * shown.groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]  # Conv1d and Conv2d differ in the tuple
        stride=shown.stride,  # type: ignore[arg-type]
        padding=before if standard else 0,  # type: ignore[arg-type]
        dilation=shown.dilation,  # type: ignore[arg-type]
        groups=shown.groups,
        bias=bias is not None,
        device="meta",
    )
    _with(conv, weight, bias)
    if standard:
        return conv
    return PaddedConv(conv, None if conversion.same_padding else conversion.padding)


def _with(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _parameter(layer: nn.Module, tensor: Tensor) -> nn.Parameter | None:
    """Return the layer's own parameter that `tensor` is, if it is one."""
    for parameter in layer.parameters(recurse=False):
        same = parameter.data_ptr() == tensor.data_ptr() and parameter.shape == tensor.shape
        if same and parameter.stride() == tensor.stride() and parameter.dtype == tensor.dtype:
            return parameter
    return None


def _as_parameter(layer: nn.Module, tensor: Tensor) -> nn.Parameter:
    """Return the layer's own parameter that `tensor` is, else a new one with its values."""
    own = _parameter(layer, tensor)
    if own is not None:
        return own
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(values, next(layer.parameters()).requires_grad)


def _padding(layer: nn.Module, x: Tensor, shown: Product) -> tuple[tuple[int, ...], bool] | str:
    """Return the zeros before and after each axis, and whether they depend on the input's size.

    Other sizes than the example's are tried too, if the layer accepts them.
    """
    axes = len(shown.stride)
    if x.dim() != axes + 2:
        return "it is called with a single example, without a batch axis"
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for change in (0, *OTHER_SIZES):
        probe = x if change == 0 else resized(x, change)
        at = shown if change == 0 else _shown(layer, probe)
        if isinstance(at, str) or at.kind != shown.kind:
            continue  # a size that the layer does not accept
        amounts = _amounts(probe, at)
        if amounts is None:
            return "what it convolves is not its input with zeros around it"
        found[tuple(probe.shape[2:])] = amounts
    first = found[tuple(x.shape[2:])]
    if all(amounts == first for amounts in found.values()):
        return first, False
    kernel = shown.weight.shape[2:]
    for sizes, amounts in found.items():
        expected = [
            int(amount)
            for axis, size in enumerate(sizes)
            for amount in same_padding(size, kernel[axis], shown.stride[axis], shown.dilation[axis])
        ]
        if list(amounts) != expected:
            return "its padding depends on the input's size in an unknown way"
    return first, True


def _amounts(x: Tensor, shown: Product) -> tuple[int, ...] | None:
    """Return the zeros around `x` in the operation: those in its input plus its own padding."""
    u, axes = shown.input, len(shown.stride)
    if u.dim() != x.dim() or u.shape[:2] != x.shape[:2]:
        return None
    extra = [a - b for a, b in zip(u.shape[2:], x.shape[2:], strict=True)]
    if min(extra) < 0:
        return None
    kernel = shown.weight.shape[2:]
    if isinstance(shown.padding, str):
        totals = [0] * axes
        if shown.padding == "same":
            totals = [d * (k - 1) for d, k in zip(shown.dilation, kernel, strict=True)]
        own = [(total // 2, total - total // 2) for total in totals]
    else:
        own = [(amount, amount) for amount in shown.padding]
    for before in combinations(*(range(size + 1) for size in extra)):
        pads = [(start, size - start) for start, size in zip(before, extra, strict=True)]
        if torch.equal(functional.pad(x, [*chain(*reversed(pads))]), u):
            pairs = zip(pads, own, strict=True)
            return tuple(chain(*((start + a, end + b) for (start, end), (a, b) in pairs)))
    return None
