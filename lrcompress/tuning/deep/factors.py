"""The small factors of a deep product, between fixed bases or with absorbed bases."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lrcompress.tuning.deep.bases import Bases, orthogonal

DEPTH = 3


class DeepFactors(nn.Module):
    """dW = W3 W2 W1, or left W3 W2 W1 right^T between bases (*batch, m, k) and (*batch, n, k).

    Between bases every W_l is (*batch, k, k) and the bases are fixed: later gradients are assumed
    to lie in the subspace of the first (Yaras et al. 2024, section 3). Absorbed, W1: (k, n) and
    W3: (m, k) start in the bases and may leave them: only the middle is compressed, and a gradient
    of only nearly low rank (few measurements, a batch) is followed as at full width. For that the
    paper trains the bases at a separate learning rate, which is not needed here.
    """

    left: Tensor | None
    right: Tensor | None

    def __init__(self, factors: list[Tensor], bases: Bases | None = None) -> None:
        """Register W1, W2, W3 (`factors`) as parameters and the bases as buffers."""
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(w) for w in factors)
        self.register_buffer("left", None if bases is None else bases.left)
        self.register_buffer("right", None if bases is None else bases.right)

    @classmethod
    def start(
        cls,
        bases: Bases,
        scale: float,
        generator: torch.Generator | None = None,
        *,
        absorbed: bool = False,
    ) -> Self:
        """Return factors W_l(0) = scale O_l; their product is scale^3 times the start's direction.

        Without a generator every O_l is the identity: the coordinates are the gradient's singular
        vectors. Gradient descent does not depend on coordinates, but Adam does: it divides each
        entry by its own history. In those coordinates most entries of a gradient are almost zero,
        and Adam takes steps as large for them as for the others. With a generator each O_l is
        random, as in a full-width start.
        """
        size, batch = bases.right.shape[-1], tuple(bases.right.shape[:-2])
        left, right = bases.left, bases.right
        if generator is None:
            eye = torch.eye(size).to(right).expand(*batch, size, size)
            rotations = [eye] * DEPTH
        else:
            whole, *rotations = (
                orthogonal(size, generator, batch=batch, like=right) for _ in range(DEPTH + 1)
            )
            right = right @ whole.mT
            for rotation in rotations:
                whole = rotation @ whole
            left = left @ whole.mT  # so that left W3 W2 W1 right^T is scale^3 Q in both cases
        factors = [scale * rotation for rotation in rotations]
        if not absorbed:
            return cls(factors, Bases(left, right))
        factors[0], factors[-1] = factors[0] @ right.mT, left @ factors[-1]
        return cls(factors)

    def forward(self) -> Tensor:
        product: Tensor = self.factors[0]
        for place in range(1, len(self.factors)):
            product = self.factors[place] @ product
        if self.left is None or self.right is None:
            return product
        return self.left @ product @ self.right.mT
