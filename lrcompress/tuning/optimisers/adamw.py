"""torch's AdamW (Loshchilov, Hutter 2019) without weight decay of vectors, in float32 or wider."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.adamw import adamw

from lrcompress.tuning.optimisers.fp32_state import WideOptimiser
from lrcompress.tuning.optimisers.optimiser import BETAS, EPS, WEIGHT_DECAY, groups


class AdamW(WideOptimiser, torch.optim.AdamW):
    """torch's AdamW, whose moments are float32 or wider."""

    def advance_(self) -> None:
        torch.optim.AdamW.step(self)


def make_adamw(
    module: nn.Module, learning_rate: float, *, weight_decay: float = WEIGHT_DECAY
) -> AdamW:
    """AdamW over the trainable parameters; biases, norms and other vectors do not decay."""
    made = groups(module, learning_rate, weight_decay)
    return AdamW(made, lr=learning_rate, betas=BETAS, eps=EPS)


class PartlyAdamW(WideOptimiser):
    """Base class of optimisers that take steps of torch's AdamW for the groups without `mark`."""

    mark: ClassVar[str]  # a group's option; the subclass's own step is for groups that have it

    def __init__(self, parameters: list[dict[str, Any]], learning_rate: float) -> None:
        defaults = {"lr": learning_rate, "betas": BETAS, "eps": EPS, self.mark: False}
        super().__init__(parameters, defaults)

    def advance_(self) -> None:
        for group in self.param_groups:
            if not group[self.mark]:
                self._advance_group_(group)

    def _advance_group_(self, group: dict[str, Any]) -> None:
        moving = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in moving]
        for parameter, state in zip(moving, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        adamw(
            moving,
            [p.grad for p in moving],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            has_complex=any(p.is_complex() for p in moving),
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
