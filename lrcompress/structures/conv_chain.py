"""A convolution as a chain of smaller ones; forward never forms the dense kernel.

Each kernel axis of the layer, with its stride, padding and dilation, belongs to one stage, so
paddings of any mode commute with the other stages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.factorized import Stage, convolution
from lrcompress.structures.structure import Factors, Structure


class ChainStructure(Structure):
    """Replaces an ungrouped convolution by a ConvChain, whose kernels are the factors."""

    kinds: ClassVar[frozenset[Kind]] = frozenset(("conv1d", "conv2d"))

    @abstractmethod
    def stages(self, spec: LayerSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return name, shape and `Stage.axes` of each kernel, from the first to the last."""

    def check_sizes(self, spec: LayerSpec) -> None:
        if spec.groups != 1:
            raise PlanError(
                f"{spec.name}: {self.type_name} needs an ungrouped convolution, not {spec.groups} "
                "groups; use low_rank or dense"
            )

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (shape, _) in self.stages(spec).items()}

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        kernel = composed(factors[name] for name in self.stages(spec))
        return kernel.reshape(1, spec.out_features, spec.in_features)

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        stages = [Stage(factors[name], axes) for name, (_, axes) in self.stages(spec).items()]
        return ConvChain.like(layer, stages, bias).train(layer.training)


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
            made.append(convolution(layer, stage, channels, bias if last else None))
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
