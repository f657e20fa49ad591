"""Balancing of the scales of two factors."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.structure import Factors


def balanced(left: Tensor, right: Tensor) -> Factors:
    """Refactor the product of two factors, with the square roots of its singular values in each.

    Undoing a whitening multiplies by inverse roots, so the raw factors may be much larger than
    their product. They would lose digits to cancellation in float32 and range in float16.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.mT)
    u, s, vt = torch.linalg.svd(r_left @ r_right.mT)
    half = s.sqrt()
    return {
        "left": q_left @ (u * half.unsqueeze(-2)),
        "right": (half.unsqueeze(-1) * vt) @ q_right.mT,
    }
