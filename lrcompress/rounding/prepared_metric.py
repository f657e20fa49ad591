"""A metric in the form that error feedback needs: ordered, with unit triangular factors.

A moment M over k features, taken in the order of falling diagonal, is factorised as
M = U D U^T with U unit upper triangular (a reverse Cholesky factorisation). With M = C or G,

    1/2 tr(G E C E^T) = 1/2 sum_ij d_G,i d_C,j (U_G^T E U_C)_ij^2,

so entry (i, j) of U_G^T E U_C is made small by the choice of code (i, j) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.errors import FitError

# Share of the mean diagonal that is added to it: moments are rank-deficient where there are fewer
# tokens than features.
DAMPING = 1e-6
# Features up to which a moment is factorised in float64; above, float32 takes half the time.
EXACT_LIMIT = 2048
FLOAT32_DAMPING = 1e-5
DAMPING_STEP = 10.0  # the damping grows by this factor where a factorisation fails
TRIES = 6
SPARE = 16  # unused columns of a factor


@dataclass(frozen=True, eq=False)
class Side:
    """One moment, for the features in `order`."""

    order: Tensor  # (k,), int64: features by falling diagonal
    conditional: Tensor  # D: (k,), float32
    upper: Tensor | None  # U: (k, k), unit upper triangular; None: diagonal, without feedback
    dead: Tensor  # (k,), bool, in the original order: the diagonal is zero

    @property
    def importance(self) -> Tensor:
        """D in the original order of the features."""
        return torch.empty_like(self.conditional).index_copy_(0, self.order, self.conditional)


@dataclass(frozen=True, eq=False)
class PreparedMetric:
    """The moments of a task, prepared once for all formats and for all weights that share them."""

    input: Side | None  # None: the identity
    output: Side | None

    @staticmethod
    def of(
        input: Tensor | None, output: Tensor | None, *, dtype: torch.dtype = torch.float32
    ) -> PreparedMetric:
        """Prepare the moments of a RoundingTask. Feedback is computed in `dtype`."""
        return PreparedMetric(prepared_side(input, dtype), prepared_side(output, dtype))


def prepared_side(moment: Tensor | None, dtype: torch.dtype) -> Side | None:
    """Return the factors of a moment: (k, k), diagonal (k,), or None for the identity.

    Raises:
        FitError: the moment is not finite, or not positive semi-definite.
    """
    if moment is None:
        return None
    diagonal = moment if moment.dim() == 1 else moment.diagonal()
    if not bool(diagonal.isfinite().all()) or bool((diagonal < 0).any()):
        raise FitError(
            "rounding: a moment's diagonal holds negative or non-finite values; profile again"
        )
    order = diagonal.argsort(descending=True, stable=True)
    dead = diagonal == 0
    if moment.dim() == 1 or bool(dead.all()):
        return Side(order, diagonal[order].to(dtype), None, dead)
    upper, conditional = _reverse_cholesky(moment, order)
    return Side(order, conditional.to(dtype), upper.to(dtype), dead)


def _reverse_cholesky(moment: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return U and D of the damped moment, whose features are taken in `order`."""
    small = moment.shape[0] <= EXACT_LIMIT
    backwards = order.flip(0)
    factorised = torch.float64 if small else torch.float32
    turned = moment.to(factorised)[backwards][:, backwards]
    mean = float(moment.diagonal().to(torch.float64).mean())
    damping = DAMPING if small else FLOAT32_DAMPING
    for _ in range(TRIES):
        turned.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not bool(failed):
            root = lower.diagonal()
            size = lower.shape[0]
            # Rows a power of two apart share cache sets, which halves the speed of products
            upper = lower.new_empty(size, size + SPARE)[:, :size]
            upper.copy_((lower / root).flip(0, 1))
            return upper, root.square().flip(0)
        damping *= DAMPING_STEP
    raise FitError(
        "rounding: a moment is not positive semi-definite, or holds NaN; profile again, or round "
        "without it"
    )
