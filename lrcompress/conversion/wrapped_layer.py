"""Standard layers with an operation before or after them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PaddedConv(nn.Module):
    """Compute conv(pad(x)), with separate numbers of zeros before and after each axis.

    `padding` lists before and after, axis by axis. None derives it from the input's size, so that
    the output has ceil(size / stride) positions; an odd zero goes to the end.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, padding: tuple[int, ...] | None) -> None:
        super().__init__()
        self.conv = conv
        self.pads = padding
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.dilation, self.groups = conv.dilation, conv.groups

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    @property
    def bias(self) -> Tensor | None:
        return self.conv.bias

    def forward(self, input: Tensor) -> Tensor:
        amounts: list[int] = []
        for axis, (kernel, stride, dilation) in enumerate(
            zip(self.kernel_size, self.stride, self.dilation, strict=True)
        ):
            if self.pads is None:
                size = input.shape[axis - len(self.kernel_size)]
                pair = same_padding(size, kernel, stride, dilation)
            else:
                pair = self.pads[2 * axis], self.pads[2 * axis + 1]
            amounts = [*pair, *amounts]  # functional.pad begins with the last axis
        out: Tensor = self.conv(functional.pad(input, amounts))
        return out


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the padding before and after that gives ceil(size / stride) output positions."""
    last = (size - 1) // stride * stride  # avoids negative numbers: ONNX rounds them towards zero
    missing = last + (kernel - 1) * dilation + 1 - size
    total = torch.sym_max(missing, 0)  # type: ignore[no-untyped-call]
    return total // 2, total - total // 2


class ScaledLayer(nn.Module):
    """Compute scale * layer(x)."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def padding_idx(self) -> int | None:
        index = getattr(self.layer, "padding_idx", None)
        return index if isinstance(index, int) else None

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.layer(input) * self.scale
        return out
