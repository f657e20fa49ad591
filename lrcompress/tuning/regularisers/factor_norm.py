"""The norm of the factors; its minimum over all factorisations of a weight is the nuclear norm.

||W||_* = min over L R^T = W of (||L||_F^2 + ||R||_F^2) / 2, attained by balanced factors (Srebro,
Rennie, Jaakkola 2004, lemma 1). So weight decay of factors favours low rank, unlike that of W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrcompress.errors import TuneError
from lrcompress.tuning.optimisers.factor_pairs import FactorPair
from lrcompress.tuning.regularisers.regulariser import Regulariser


class FactorNorm(Regulariser):
    """The penalty strength * (||L||_F^2 + ||R||_F^2) / 2, summed over the pairs."""

    def __init__(self, strength: float = 1e-4) -> None:
        if not 0 < strength < float("inf"):
            raise TuneError(f"factor-norm: strength {strength} is not above 0; correct it")
        self.strength = strength

    def penalty(self, pairs: Sequence[FactorPair]) -> Tensor | None:
        squares = [p.square().sum() for pair in pairs for p in pair.parameters]
        return self.strength * torch.stack(squares).sum() / 2 if squares else None
