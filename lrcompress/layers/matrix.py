"""How a layer's weight, input and output read as a matrix and its rows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lrcompress.errors import ModelError
from lrcompress.layers.kind import layer_kind


def weight_matrix(layer: nn.Module) -> Tensor:
    """Return the weight as ``(groups, m, n)``, a view where possible.

    Raises:
        ModelError: the layer has no matrix form.
    """
    kind = layer_kind(layer)
    if kind is None:
        raise ModelError(f"{type(layer).__name__} has no matrix form; exclude the layer")
    weight = weight_of(layer).detach()
    if kind == "linear":
        return weight[None]
    if kind in ("transposed_linear", "embedding"):
        return weight.mT[None]
    groups = int(getattr(layer, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


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
