"""Adam in a subspace that follows the gradient, with a recovery term for the rest of the gradient.

Similar to SubTrack++ (Rajabi et al. 2025, arXiv 2502.01586): the subspace is that of the first
gradient, then moves along geodesics of the Grassmannian (`tracking`). Adam's moments are converted
to its coordinates. The shorter side of the weight is projected: for a weight (m, n) with m <= n
the state holds a subspace (m, r) and moments (r, n), instead of two tensors (m, n). A weight and
its transpose are trained alike; a square one is projected on the side whose features differ more
in energy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.tuning.optimisers.adamw import PartlyAdamW
from lrcompress.tuning.optimisers.fp32_state import lost_
from lrcompress.tuning.optimisers.optimiser import WEIGHT_DECAY, groups, unbiased
from lrcompress.tuning.optimisers.tracking import carried, dominant, recovered, turned

_SMALLEST_SIDE = 4  # below this a subspace saves nothing
# In units of eps times the norm of a column: in a subspace wider than the gradient's rank some
# coordinates are rounding errors, which Adam would scale to full steps.
_ROUNDING = 100


@dataclass(frozen=True)
class Tracking:
    """How a subspace follows the gradient; `follow(subspace, gradient)` is the next subspace."""

    follow: Callable[[Tensor, Tensor], Tensor]
    interval: int  # steps between two subspaces
    carry_moments: bool  # convert them to the coordinates of the next subspace
    recover: bool  # add the recovery term for the gradient outside the subspace
    scale: float = 1.0  # of the step inside the subspace
    share: float = 0.25  # rank / shorter side

    def rank(self, shape: tuple[int, ...]) -> int:
        return max(1, round(self.share * min(matrix_shape(shape))))


SUBTRACK = Tracking(partial(turned, gain=0.5), interval=10, carry_moments=True, recover=True)


class SubspaceAdam(PartlyAdamW):
    """Adam in a subspace for the weights of "tracked" groups; AdamW for the other groups."""

    mark = "tracked"

    def __init__(
        self, parameters: list[dict[str, Any]], learning_rate: float, tracking: Tracking
    ) -> None:
        super().__init__(parameters, learning_rate)
        self._tracking = tracking

    def advance_(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["tracked"] else ():
                if parameter.grad is not None and not lost_([parameter]):
                    self._advance_parameter_(parameter, group)
        super().advance_()

    def _advance_parameter_(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        assert parameter.grad is not None
        rate = float(group["lr"])
        parameter.mul_(1 - rate * group["weight_decay"])
        matrix = parameter.grad.reshape(matrix_shape(parameter.shape))
        if not state:
            if not bool(matrix.any()):
                return  # no subspace yet
            state["transposed"] = torch.tensor(_project_columns(matrix))
        transposed = bool(state["transposed"])
        # contiguous, so that a weight and its transpose have the same order of operations
        gradient = matrix.mT.contiguous() if transposed else matrix.contiguous()
        step = self._step(gradient, state, group)
        step = step.mT if transposed else step
        parameter.sub_(step.reshape(parameter.shape), alpha=rate)

    def _step(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return the step for learning rate 1; gradient: (rows, columns), rows are projected."""
        how = self._tracking
        if "subspace" not in state:
            rank = how.rank(gradient.shape)
            state["step"] = torch.tensor(0.0)
            state["subspace"] = dominant(gradient, rank)
            state["first"] = gradient.new_zeros(rank, gradient.shape[1])
            state["second"] = torch.zeros_like(state["first"])
        elif int(state["step"]) % how.interval == 0:
            before, after = state["subspace"], how.follow(state["subspace"], gradient)
            if how.carry_moments:
                state["first"], state["second"] = carried(
                    state["first"], state["second"], before, after
                )
            state["subspace"] = after
        state["step"] += 1
        first_decay, second_decay = unbiased(group["betas"], float(state["step"]))
        subspace = state["subspace"]
        inside = subspace.mT @ gradient  # (rank, columns)
        state["first"].lerp_(inside, 1 - first_decay)
        state["second"].lerp_(inside.square(), 1 - second_decay)
        power = state["second"].sqrt()
        rounding = _ROUNDING * torch.finfo(power.dtype).eps * power.norm(dim=0)
        normalised = state["first"] / (power + rounding + group["eps"])
        step: Tensor = how.scale * (subspace @ normalised)
        if how.recover:
            step += recovered(gradient - subspace @ inside, inside, normalised)
        return step


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the most nearly square matrix shape of a tensor with two or more axes."""
    splits = [(prod(shape[:k]), prod(shape[k:])) for k in range(1, len(shape))]
    return min(splits, key=sum)


def _project_columns(matrix: Tensor) -> bool:
    rows, columns = matrix.shape
    if rows != columns:
        return rows > columns
    energy = matrix.double().square()
    return bool(energy.sum(0).square().sum() > energy.sum(1).square().sum())


def _has_subspace(parameter: nn.Parameter) -> bool:
    if parameter.dim() < 2 or parameter.is_complex():
        return False
    return min(matrix_shape(parameter.shape)) >= _SMALLEST_SIDE


def make_subspace(
    module: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = WEIGHT_DECAY,
    tracking: Tracking = SUBTRACK,
) -> SubspaceAdam:
    """Return Adam in tracked subspaces for the trainable matrices, AdamW for other parameters."""
    made = groups(module, learning_rate, weight_decay, _has_subspace, {"tracked": True})
    return SubspaceAdam(made, learning_rate, tracking)
