"""Error feedback along the columns: each column also corrects the error of the columns before it.

    v_j = w_j + sum_{l<j} e_l U[l, j],  e_j = w_j - scale_j * round(v_j / scale_j)

This is GPTQ (Frantar et al. 2022) in the form of QuIP (Chee et al. 2023). Updates of columns after
the current block are delayed and done by one product per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.rounding.cells import Cells, clamped_

BLOCK = 64  # columns whose updates are delayed together


def column_feedback(cells: Cells, upper: Tensor) -> Tensor:
    """Return levels (rows, columns); upper: U, unit upper triangular, (columns, columns)."""
    turned = cells.mT
    weight, scale = turned.weight.contiguous(), turned.scale.contiguous()  # (columns, rows)
    target = weight.clone()
    levels, errors = torch.empty_like(weight), torch.empty_like(weight)
    columns = weight.shape[0]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        for j in range(start, stop):
            level = torch.div(target[j], scale[j], out=levels[j]).round_()
            clamped_(level, _row(turned.low, j), _row(turned.high, j))
            error = torch.addcmul(weight[j], level, scale[j], value=-1, out=errors[j])
            target[j + 1 : stop].addr_(upper[j, j + 1 : stop], error)
        target[stop:].addmm_(upper[start:stop, stop:].mT, errors[start:stop])
    return levels.mT


def _row(bound: Tensor | float, j: int) -> Tensor | float:
    return bound[j] if isinstance(bound, Tensor) else bound
