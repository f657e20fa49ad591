"""torch's AdamW (Loshchilov, Hutter 2019) without weight decay of vectors, in float32 or wider."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lrcompress.tuning.optimisers.fp32_state import WideOptimiser
from lrcompress.tuning.optimisers.groups import groups, trainable
from lrcompress.tuning.optimisers.optimiser import BETAS, EPS, WEIGHT_DECAY


class AdamW(WideOptimiser, torch.optim.AdamW):
    """torch's AdamW, whose moments are float32 or wider."""

    def advance_(self) -> None:
        torch.optim.AdamW.step(self)


def make_adamw(
    module: nn.Module, learning_rate: float, *, weight_decay: float = WEIGHT_DECAY
) -> AdamW:
    """AdamW over the trainable parameters; biases, norms and other vectors do not decay.

    Raises:
        TuneError: nothing is trainable, or the learning rate is not above zero.
    """
    rows = trainable(module, learning_rate)
    return AdamW(groups(rows, weight_decay), lr=learning_rate, betas=BETAS, eps=EPS)


def adamw_(optimiser: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Take one step of torch's AdamW for a parameter group that another optimiser leaves to it."""
    moving = [p for p in group["params"] if p.grad is not None]
    states = [optimiser.state[p] for p in moving]
    for parameter, state in zip(moving, states, strict=True):
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

    def all_of(name: str) -> list[Tensor]:
        return [state[name] for state in states]

    beta1, beta2 = group["betas"]
    adamw(
        moving,
        [p.grad for p in moving],
        all_of("exp_avg"),
        all_of("exp_avg_sq"),
        [],
        all_of("step"),
        amsgrad=False,
        has_complex=any(p.is_complex() for p in moving),
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
