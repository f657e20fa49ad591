"""The kinds of layers that may be compressed, recognised by their forward."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Kind = Literal["linear", "transposed_linear", "embedding", "conv1d", "conv2d"]
_CONVOLUTIONS: dict[Kind, type[nn.Conv1d | nn.Conv2d]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
}
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NEVER_CONVERTED = (
    *RECURRENT,
    nn.modules.conv._ConvTransposeNd,
    nn.Conv3d,
    nn.Bilinear,
    parametrize.ParametrizationList,
)


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
    return any(is_matrix(p) for p in layer.parameters(recurse=False))


def is_matrix(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and sum(size > 1 for size in parameter.shape) > 1
