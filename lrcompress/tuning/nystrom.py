"""Nyström start of low-rank factors: a product near the weight, without its SVD.

W ~ (W X) (Y^T W X)^+ (Y^T W) is W itself where its rank is at most that of the sketches X: (n, r)
and Y: (m, l) (Nakatsukasa, "Fast and stable randomized low-rank matrix approximation", 2020,
section 2). NLoRA (Guo, Chang, Wu 2025) takes the first r rows and columns of W for W X and Y^T W,
which is that only where those happen to span it; Gaussian sketches do so for every weight. Two
products of W with thin matrices, where the SVD of PiSSA costs its smaller side times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.errors import TuneError

OVERSAMPLING = 5  # of Y, which keeps the core well conditioned


def nystrom(weight: Tensor, rank: int, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """B (groups, m, r) and A (groups, r, n) of equal size in the core, scaling B A near `weight`.

    In float64. The same weight gives the same factors; where its rank is below r, columns of B
    and rows of A are zero.

    Raises:
        TuneError: the rank is not between 1 and min(m, n), or the weight is not finite.
    """
    m, n = weight.shape[-2:]
    if not 1 <= rank <= min(m, n):
        raise TuneError(f"rank {rank} is not between 1 and {min(m, n)}; correct it")
    if not bool(torch.isfinite(weight).all()):
        raise TuneError("the weight is not finite; check the model")
    wide, generator = weight.double(), torch.Generator().manual_seed(0)

    def sketch(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return drawn.to(weight.device)

    columns = wide @ sketch(n, rank)  # W X: (groups, m, r)
    left = sketch(m, min(m, rank + OVERSAMPLING))
    rows = left.mT @ wide  # Y^T W: (groups, l, n)
    p, s, qt = torch.linalg.svd(left.mT @ columns, full_matrices=False)
    floor = s[..., :1] * max(left.shape) * torch.finfo(torch.float64).eps
    root = torch.where(s > floor, s * scaling, torch.inf).rsqrt()  # zero for the dropped ones
    return columns @ qt.mT * root.unsqueeze(-2), root.unsqueeze(-1) * (p.mT @ rows)
