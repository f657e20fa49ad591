"""The best low-rank approximation of a product in a layer's metric, without forming the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.metrics import Whitening
from lrcompress.structures.balance import balanced


def truncated(
    left: Tensor, right: Tensor, rank: int, whitening: Whitening
) -> tuple[Tensor, Tensor, float]:
    """Return the best factors of rank `rank` for U V, and the loss.

    The loss is half the sum of the squared singular values that are dropped.
    left: (groups, m, k)  right: (groups, k, n), converted to float64. With G^1/2 U = Q_1 R_1 and
    (V C^1/2)^T = Q_2 R_2 the singular values of the whitened product are those of R_1 R_2^T, and
    [Q_1 [R_1 R_2^T]_r Q_2^T] is its best approximation (Eckart-Young in the whitened space).
    """
    q_left, r_left = torch.linalg.qr(whitening.output.left(left.double()))
    q_right, r_right = torch.linalg.qr(whitening.input.right(right.double()).mT)
    p, s, qt = torch.linalg.svd(r_left @ r_right.mT)  # (groups, k, k), smaller if m or n < k
    kept = p[..., :rank] * s[..., None, :rank]
    factors = balanced(
        whitening.output.left_inverse(q_left @ kept),
        whitening.input.right_inverse(qt[..., :rank, :] @ q_right.mT),
    )
    return factors["left"], factors["right"], 0.5 * float(s[..., rank:].square().sum())


def product_loss(left: Tensor, right: Tensor, whitening: Whitening) -> float:
    """Return 1/2 ||U V||^2 in the metric: the loss of dropping the product."""
    r_left = torch.linalg.qr(whitening.output.left(left.double()), mode="r").R
    r_right = torch.linalg.qr(whitening.input.right(right.double()).mT, mode="r").R
    return 0.5 * float((r_left @ r_right.mT).square().sum())
