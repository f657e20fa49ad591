"""Rank dropout: W = L diag(z) R^T with a random z in each forward with gradients.

The expected squared error of L diag(z) R^T X has a closed form in the mean and the covariance of z.
For independent z it adds rate / (1 - rate) sum_k ||l_k||^2 ||r_k^T X||^2
to that of W, which favours weights of low rank (Cavazza et al., "Dropout as a Low-Rank Regularizer
for Matrix Factorization", 2018, eq. 6). Nested z (Rippel, Gelbart, Adams 2014) keep the first
ranks: the ranks are ordered by importance, so a slice of the factors is a smaller network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrcompress.errors import TuneError
from lrcompress.tuning.optimisers.factor_pairs import Factor, FactorPair
from lrcompress.tuning.regularisers.regulariser import Regulariser


class MaskedRanks(Regulariser):
    """Base class of regularisers that mask ranks at random.

    Masks come from `generator`, or from torch's global one, whose state is in tuning checkpoints.
    """

    def __init__(self, rate: float, generator: torch.Generator | None = None) -> None:
        if not 0 < rate < 1:
            raise TuneError(f"rank dropout: rate {rate} is not between 0 and 1; correct it")
        self.rate, self.generator = rate, generator

    def penalty(self, pairs: Sequence[FactorPair]) -> None:
        """Return None: the masks are the whole regulariser."""

    @abstractmethod
    def draw(self, batch: int, rank: int) -> Tensor:
        """Return z for each of `batch` matrices: (batch, rank)."""

    @contextmanager
    def attached_(self, module: nn.Module, pairs: Sequence[FactorPair]) -> Iterator[None]:
        left = {id(pair.left.parameter): pair.left for pair in pairs}
        places = [
            (owner, name, left[id(parameter)])
            for owner in list(module.modules())
            for name, parameter in list(owner.named_parameters(recurse=False))
            if id(parameter) in left
        ]
        orders = {owner: tuple(owner._parameters) for owner, _, _ in places}
        for owner, name, factor in places:
            parametrize.register_parametrization(owner, name, _Masked(self, factor))
        try:
            yield
        finally:
            for owner, name, _ in places:
                parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
            for owner, order in orders.items():  # the order in checkpoints and exports
                held = {name: owner._parameters[name] for name in order}
                owner._parameters.clear()
                owner._parameters.update(held)


class RankDropout(MaskedRanks):
    """Independent z_k: 0 with probability `rate`, otherwise 1 / (1 - rate)."""

    def __init__(self, rate: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__(rate, generator)

    def draw(self, batch: int, rank: int) -> Tensor:
        kept = torch.rand(batch, rank, generator=self.generator) >= self.rate
        return kept / (1 - self.rate)


class NestedRankDropout(MaskedRanks):
    """Nested z: with probability `rate` only the first b ranks are kept, b uniform in 1 ... rank.

    There is no rescaling, since each slice should be usable as a weight.
    """

    def __init__(self, rate: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__(rate, generator)

    def draw(self, batch: int, rank: int) -> Tensor:
        cut = torch.rand(batch, 1, generator=self.generator) < self.rate
        kept = torch.randint(1, rank + 1, (batch, 1), generator=self.generator)
        kept = torch.where(cut, kept, rank)
        return (torch.arange(rank) < kept).to(torch.get_default_dtype())


class _Masked(nn.Module):
    """The left factor of a pair, with masked columns if its gradient is required."""

    def __init__(self, masks: MaskedRanks, factor: Factor) -> None:
        super().__init__()
        self._masks, self._factor = masks, factor

    def forward(self, values: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and values.requires_grad):
            return values
        matrices = self._factor.matrices(values)  # (batch, rows, rank)
        masks = self._masks.draw(matrices.shape[0], matrices.shape[-1]).to(matrices)
        return self._factor.values(matrices * masks.unsqueeze(-2))
