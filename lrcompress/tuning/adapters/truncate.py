"""The best product of a smaller rank in a layer's metric, without ever forming the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.metrics import Whitening
from lrcompress.structures.balance import balanced


def truncated(
    left: Tensor, right: Tensor, rank: int, whitening: Whitening
) -> tuple[Tensor, Tensor, float]:
    """Factors of rank `rank` for U V, and the loss: 1/2 of the squared singular values left out.

    left: (groups, m, k)  right: (groups, k, n), in float64 from here on. With G^1/2 U = Q_1 R_1
    and (V C^1/2)^T = Q_2 R_2 the singular values of the whitened product are those of R_1 R_2^T,
    and [Q_1 [R_1 R_2^T]_r Q_2^T] is its best approximation (Eckart-Young in the whitened space).
    """
    q_left, r_left = torch.linalg.qr(whitening.output.left(left.double()))
    q_right, r_right = torch.linalg.qr(whitening.input.right(right.double()).mT)
    p, s, qt = torch.linalg.svd(r_left @ r_right.mT)  # (groups, k, k), or less of few rows
    kept = p[..., :rank] * s[..., None, :rank]
    factors = balanced(
        whitening.output.left_inverse(q_left @ kept),
        whitening.input.right_inverse(qt[..., :rank, :] @ q_right.mT),
    )
    return factors["left"], factors["right"], 0.5 * float(s[..., rank:].square().sum())


def product_loss(left: Tensor, right: Tensor, whitening: Whitening) -> float:
    """1/2 ||U V||^2 in the metric: the loss of leaving the product out."""
    r_left = torch.linalg.qr(whitening.output.left(left.double()), mode="r").R
    r_right = torch.linalg.qr(whitening.input.right(right.double()).mT, mode="r").R
    return 0.5 * float((r_left @ r_right.mT).square().sum())
