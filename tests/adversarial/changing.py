"""A model whose code changes while its weights stay: `changing:build` and `changing:batches`."""

from __future__ import annotations

import torch
from small_network import WIDTH, batches  # noqa: F401
from torch import Tensor, nn

FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}


class Code:
    """What a user may edit between two runs."""

    function = "relu"
    eps = 1e-5
    seed = 0
    other = "gelu"  # of the teacher


class Changing(nn.Module):
    """x: (examples, WIDTH) → class scores (examples, 7)."""

    def __init__(self, *, is_other: bool = False) -> None:
        super().__init__()
        self.is_other = is_other
        self.up = nn.Linear(WIDTH, 40)
        self.middle = nn.Linear(40, 40)
        self.norm = nn.LayerNorm(40, eps=Code.eps)
        self.head = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        function = FUNCTIONS[Code.other if self.is_other else Code.function]
        return torch.as_tensor(self.head(self.norm(function(self.middle(function(self.up(x)))))))


def build() -> Changing:
    torch.manual_seed(Code.seed)
    return Changing()


def build_other() -> Changing:
    torch.manual_seed(Code.seed)
    return Changing(is_other=True)
