"""LoRA-RITE (Yen et al. 2024, arXiv 2410.20625): a step of B A that does not depend on its basis.

(B M, M^-1 A) is the same weight for every invertible M, but Adam's step differs for each M. Here
the moments are in an orthonormal basis of the other factor's range. They are converted when that
basis changes, and the step is a function of the weight (algorithm 1; kernels in `bases`). Running
means are unbiased and second moments are divided by the number of rows, as in the authors' code.
So the entries of a step are of order one, and the learning rate has the same meaning as in Adam.

Two things differ from the paper; both are independent of the basis. DAMPING times the largest
eigenvalue of the second moment is added to all of them, instead of an absolute epsilon. Where the
product has singular values below the length of a step, the right factor's step is shorter
(`damped_inverse`). Without this, an adapter that starts from zero diverges at its second step if
its first gradient has lower rank.

All parameters outside pairs use AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.tuning.optimisers.adamw import PartlyAdamW
from lrcompress.tuning.optimisers.bases import Basis, Moments, basis, damped_inverse
from lrcompress.tuning.optimisers.factor_pairs import Factor, FactorPair, factor_pairs
from lrcompress.tuning.optimisers.fp32_state import lost_
from lrcompress.tuning.optimisers.optimiser import WEIGHT_DECAY, groups, unbiased


class LoraRite(PartlyAdamW):
    """LoRA-RITE for "paired" groups, which hold the factors of `pairs`; AdamW for other groups."""

    mark = "paired"

    def __init__(
        self, parameters: list[dict[str, Any]], pairs: Sequence[FactorPair], learning_rate: float
    ) -> None:
        super().__init__(parameters, learning_rate)
        self._pairs = tuple(pairs)

    def advance_(self) -> None:
        by_parameter = {p: group for group in self.param_groups for p in group["params"]}
        for pair in self._pairs:
            self._advance_pair_(pair, by_parameter)
        super().advance_()

    def _advance_pair_(self, pair: FactorPair, groups: dict[Tensor, dict[str, Any]]) -> None:
        first, second = pair.parameters
        if (first.grad is None and second.grad is None) or 0 in (first.numel(), second.numel()):
            return
        if lost_(pair.parameters):
            return
        # a narrow factor without a gradient is still narrow
        dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
        left, right = (basis(f.matrices(f.parameter.to(dtype))) for f in (pair.left, pair.right))
        group = groups[pair.right.parameter]
        m, n = (b.columns.shape[-2] for b in (left, right))
        # spectral norm of a step whose entries, before the learning rate, are of order one
        step = float(group["lr"]) * (m * n) ** 0.25
        self._advance_factor_(pair.left, right, right.inverse.mT, groups)
        self._advance_factor_(pair.right, left, damped_inverse(left, right, step), groups)

    def _advance_factor_(
        self, factor: Factor, other: Basis, inverse: Tensor, groups: dict[Tensor, dict[str, Any]]
    ) -> None:
        """Update one factor. inverse: (batch, k, r), converts back from the other one's basis."""
        parameter = factor.parameter
        if parameter.grad is None:
            return
        group, state = groups[parameter], self.state[parameter]
        gradient = (
            factor.matrices(parameter.grad).to(inverse.dtype) @ other.inverse
        )  # (batch, m, k)
        if state:
            held = Moments(state["first"], state["second"], state["escaped"])
            moments = held.moved(state["basis"], other.columns)
        else:
            state["step"] = torch.tensor(0.0)
            k = gradient.shape[-1]
            second = gradient.new_zeros(len(gradient), k, k)
            moments = Moments(torch.zeros_like(gradient), second, second[:, 0, 0].clone())
        state["step"] += 1
        moments = moments.updated(gradient, unbiased(group["betas"], float(state["step"])))
        state["first"], state["second"] = moments.first, moments.second
        state["escaped"], state["basis"] = moments.escaped, other.columns
        rate = float(group["lr"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(factor.values(moments.first @ inverse), alpha=rate)


def make_lora_rite(
    module: nn.Module, learning_rate: float, *, weight_decay: float = WEIGHT_DECAY
) -> LoraRite:
    """Return LoRA-RITE for the pairs of factors in `module`, with AdamW for other parameters."""
    pairs = [pair for pair in factor_pairs(module) if pair.free_basis]
    paired = {id(p) for pair in pairs for p in pair.parameters}
    made = groups(module, learning_rate, weight_decay, lambda p: id(p) in paired, {"paired": True})
    return LoraRite(made, pairs, learning_rate)
