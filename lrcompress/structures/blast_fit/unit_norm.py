"""Scaling of weights to Frobenius norm 1, in the dtype of a fit, with padding to whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.structures.blast_fit.factors import block_length


def norms(weight: Tensor) -> Tensor:
    """Frobenius norms of weights (batch, m, n), with 1 in place of zero: (batch, 1, 1).

    Computed in float32 or wider: float16 cannot hold the norm of a large weight.

    Raises:
        FitError: the weight is not finite.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = weight.abs().amax((1, 2), keepdim=True)  # squares of large weights would overflow
    if not bool(torch.isfinite(largest).all()):
        raise FitError("the weight is not finite; check the model")
    largest = torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(weight / largest, dim=(1, 2), keepdim=True)
    return torch.where(norm > 0, norm * largest, 1.0)


def padded(
    weight: Tensor, norm: Tensor, blocks_out: int, blocks_in: int, dtype: torch.dtype
) -> Tensor:
    """Return weight / norm, padded with zeros to whole blocks: (batch, b_out p, b_in q)."""
    batch, m, n = weight.shape
    height, width = block_length(m, blocks_out), block_length(n, blocks_in)
    out = weight.new_zeros(batch, blocks_out * height, blocks_in * width, dtype=dtype)
    torch.div(weight, norm, out=out[:, :m, :n])
    return out
