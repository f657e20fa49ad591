"""Two factors of equal size, whatever made them."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.structure import Factors


def balanced(left: Tensor, right: Tensor) -> Factors:
    """The same product, split at the square roots of its own singular values.

    Undoing a whitening multiplies by inverse roots, so the raw factors may be large where their
    product is not, and lose digits to cancellation in float32 and range in float16.
    """
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.mT)
    u, s, vt = torch.linalg.svd(r_left @ r_right.mT)
    half = s.sqrt()
    return {
        "left": q_left @ (u * half.unsqueeze(-2)),
        "right": (half.unsqueeze(-1) * vt) @ q_right.mT,
    }
