"""A convolution as a chain of smaller ones; forward never forms the dense kernel.

Each kernel axis of the layer, with its stride, padding and dilation, belongs to one stage, so
paddings of any mode commute with the other stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from lrcompress.structures.factorized import _bias, _parameter


@dataclass(frozen=True, eq=False)
class Stage:
    """One convolution; kernel: (out, in/groups, *kernel), of size 1 along other stages' axes.

    It is grouped if its kernel has fewer input channels than the previous stage has outputs.
    """

    kernel: Tensor
    axes: tuple[int, ...] = ()  # kernel axes of the layer that this stage handles


def composed(kernels: Iterable[Tensor]) -> Tensor:
    """The kernel (m, c, *kernel) of a chain of convolutions (out, in/groups, *kernel).

    Along each axis at most one of them is longer than 1, so kernels multiply position by position.
    """
    first, *rest = kernels
    whole = first
    for kernel in rest:
        if kernel.shape[1] == whole.shape[0]:
            product = _positions_first(kernel) @ _positions_first(whole)  # (*kernel, out, c)
            whole = product.permute(-2, -1, *range(product.dim() - 2))
        else:  # depthwise: one input channel for each output
            assert kernel.shape[:2] == (whole.shape[0], 1)
            whole = kernel * whole
    return whole


def _positions_first(kernel: Tensor) -> Tensor:
    return kernel.permute(*range(2, kernel.dim()), 0, 1)  # (*kernel, out, in)


class ConvChain(nn.Module):
    """A chain y = last(... first(x)) without activations; the last stage has the bias."""

    def __init__(self, stages: Sequence[nn.Conv1d | nn.Conv2d], layer: nn.Module) -> None:
        """`layer`: the replaced layer, read for its sizes and not kept."""
        super().__init__()
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        self.stages = nn.Sequential(*stages)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.padding = (
            layer.kernel_size, layer.stride, layer.padding
        )  # fmt: skip
        self.dilation, self.groups = layer.dilation, layer.groups
        self.padding_mode = layer.padding_mode

    @classmethod
    def like(cls, layer: nn.Module, stages: Sequence[Stage], bias: Tensor | None) -> Self:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        channels, made = layer.in_channels, []
        for stage in stages:
            last = stage is stages[-1]
            made.append(_convolution(layer, stage, channels, bias if last else None))
            channels = stage.kernel.shape[0]
        return cls(made, layer)

    @property
    def weight(self) -> Tensor:
        return composed(stage.weight for stage in self._convolutions())

    @property
    def bias(self) -> Tensor | None:
        return self._convolutions()[-1].bias

    def _convolutions(self) -> list[nn.Conv1d | nn.Conv2d]:
        return [stage for stage in self.stages if isinstance(stage, nn.Conv1d | nn.Conv2d)]

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.stages(input)
        return out


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, stage: Stage, channels: int, bias: Tensor | None
) -> nn.Conv1d | nn.Conv2d:
    """Build one stage, on the meta device, so that nothing is initialised."""
    make = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d

    def own(values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(v if axis in stage.axes else otherwise for axis, v in enumerate(values))

    padding: str | tuple[int, ...]
    if isinstance(layer.padding, str):
        padding = layer.padding if stage.axes else "valid"
    else:
        padding = own(layer.padding, 0)
    built = make(
        channels,
        stage.kernel.shape[0],
        tuple(stage.kernel.shape[2:]),  # type: ignore[arg-type]  # Conv1d and Conv2d differ here
        stride=own(layer.stride, 1),  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=own(layer.dilation, 1),  # type: ignore[arg-type]
        groups=channels // stage.kernel.shape[1],
        bias=bias is not None,
        padding_mode=layer.padding_mode if stage.axes else "zeros",
        device="meta",
    )
    built.weight = _parameter(stage.kernel, layer.weight)
    if bias is not None:
        built.bias = _bias(bias, layer)
    return built
