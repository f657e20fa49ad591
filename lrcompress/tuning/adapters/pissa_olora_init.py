"""Initial adapters of PiSSA and OLoRA, which move a part of the frozen factor into the adapter.

They work for every kind of factor, in float64. PEFT's own versions support nn.Linear only: they
reject convolutions and silently start an embedding's adapter at zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Start = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""Of a matrix W (groups, m, n), a rank r and a scaling: B (groups, m, r) and A (groups, r, n).

W - scaling B A is frozen, so that the sum is W.
"""


def principal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The truncated SVD, split evenly between B and A: PiSSA (Meng et al. 2024, eq. 2-4)."""
    p, s, qt = torch.linalg.svd(weight.double(), full_matrices=False)
    root = (s[..., :rank] / scaling).sqrt()
    return p[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * qt[..., :rank, :]


def orthonormal(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The first columns of Q and rows of R of W = Q R: OLoRA (Büyükakyüz 2024, algorithm 1)."""
    q, r = torch.linalg.qr(weight.double())
    return q[..., :rank], r[..., :rank, :]
