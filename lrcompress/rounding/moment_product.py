"""Products with a moment in any of its forms: full, diagonal, or None for the identity."""

from __future__ import annotations

from torch import Tensor


def times(moment: Tensor | None, values: Tensor) -> Tensor:
    """Return M X in the dtype of X: (k, columns)."""
    if moment is None:
        return values
    moment = moment.to(values.dtype)
    return moment.unsqueeze(-1) * values if moment.dim() == 1 else moment @ values


def right_times(values: Tensor, moment: Tensor | None) -> Tensor:
    """Return X M in the dtype of X: (rows, k)."""
    if moment is None:
        return values
    moment = moment.to(values.dtype)
    return values * moment if moment.dim() == 1 else values @ moment
