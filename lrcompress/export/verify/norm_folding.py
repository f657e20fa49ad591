"""Kernels with a batch norm folded into them: y = g (W x + b - mean) / sqrt(var + eps) + beta.

An exporter stores W g / sqrt(var + eps) and the corresponding bias instead of the network's own
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.export.verify.tensor_matching import Target

_ROUNDINGS = 4  # of the root, the quotient, the product, and the stored value


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """The weight and bias of a layer with the following norm folded in."""

    weight: Target
    bias: Target
    absorbed: frozenset[str]  # the network's tensors that are no longer stored


def folded_norms(module: nn.Module, weight: str, dtype: torch.dtype) -> Iterator[FoldedNorm]:
    """Yield the result of folding each norm of matching size into the weight of that name.

    dtype: dtype of the file; the network's tensors are rounded to it before folding.
    """
    owner, _, last = weight.rpartition(".")
    if last != "weight":
        return
    layer = module.get_submodule(owner)
    values, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    for name, norm in module.named_modules():
        variance, mean = getattr(norm, "running_var", None), getattr(norm, "running_mean", None)
        if not isinstance(variance, Tensor) or not isinstance(mean, Tensor):
            continue
        for axis in range(min(values.dim(), 2)):  # axis 1: outputs of a transposed convolution
            fits = bias is None or len(bias) == len(variance)
            if fits and values.shape[axis] == len(variance):
                yield _folded(name, norm, weight, axis, layer, dtype)


def _folded(
    name: str, norm: nn.Module, weight: str, axis: int, layer: nn.Module, dtype: torch.dtype
) -> FoldedNorm:
    def rounded(part: nn.Module, which: str, default: float) -> Tensor:
        tensor = getattr(part, which, None)
        if not isinstance(tensor, Tensor):
            return torch.tensor(default, dtype=torch.float64)
        return tensor.detach().to(dtype).double()

    values, bias = rounded(layer, "weight", 0), rounded(layer, "bias", 0)
    mean, variance = rounded(norm, "running_mean", 0), rounded(norm, "running_var", 1)
    scale = rounded(norm, "weight", 1) * torch.rsqrt(variance + float(getattr(norm, "eps", 0)))
    moved = (bias - mean) * scale + rounded(norm, "bias", 0)
    terms = torch.cat([moved, (bias.abs() + mean.abs()) * scale])  # they may cancel
    shape = [1] * values.dim()
    shape[axis] = -1
    folded = values * scale.reshape(shape)
    owner = weight.rpartition(".")[0]
    own = {f"{owner}.{part}" for part in ("weight", "bias")}
    norms = {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    return FoldedNorm(
        weight=Target(f"{weight} with {name}", folded.float(), _ROUNDINGS),
        bias=Target(
            f"{owner}.bias with {name}",
            moved.float(),
            _ROUNDINGS,
            float(_ROUNDINGS * torch.finfo(dtype).eps * terms.abs().max()),
        ),
        absorbed=frozenset(own | norms),
    )
