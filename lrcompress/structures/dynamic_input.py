"""Linear layers whose input is rounded to 8 bits at run time.

As ONNX's DynamicQuantizeLinear: one uint8 grid for the whole input of a call, from its least to its
largest value, zero included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def rounded_input(x: Tensor) -> Tensor:
    """Round `x` to the grid of ONNX DynamicQuantizeLinear, and return the dequantised values."""
    if x.numel() == 0:
        return x
    single = x.float()
    least, most = single.amin().clamp_max(0), single.amax().clamp_min(0)
    scale = (most - least) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-least / scale).round().clamp(0, 255)
    codes = ((single / scale).round() + zero).clamp(0, 255)
    return ((codes - zero) * scale).to(x.dtype)


class DynamicLinear(nn.Linear):
    """A linear layer of int8 weights and rounded inputs; gradients ignore the rounding."""

    def forward(self, input: Tensor) -> Tensor:
        # The difference is zero and carries the gradient; the sum is exactly the rounded input
        rounded = rounded_input(input.detach()) + (input - input.detach())
        return functional.linear(rounded, self.weight, self.bias)


def round_inputs_(layer: nn.Linear) -> None:
    """Make a linear layer round its inputs, in place."""
    assert type(layer) is nn.Linear
    layer.__class__ = DynamicLinear


def exact_inputs_(module: nn.Module) -> None:
    """Undo `round_inputs_` in every layer of a module, in place."""
    for part in module.modules():
        if type(part) is DynamicLinear:
            part.__class__ = nn.Linear  # type: ignore[assignment]  # DynamicLinear adds no state
