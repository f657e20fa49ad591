"""Drop a layer's padding rows, to which the attention mask is matched by its shape alone."""

from __future__ import annotations

import torch
from torch import Tensor


def positions_first(mask: Tensor | None, positions: torch.Size) -> bool:
    """Whether the layout is (positions, examples), as in torch's recurrent layers."""
    return mask is not None and mask.shape != positions and mask.T.shape == positions


def without_padding(rows: Tensor, positions: torch.Size, mask: Tensor | None) -> Tensor:
    """Drop padding rows: (*positions, ...) -> (kept, ...).

    mask: (examples, positions), true for tokens. If its shape does not fit the rows (pooled
    vectors, a position table), all rows are kept.
    """
    flat = rows.reshape(positions.numel(), *rows.shape[len(positions) :])
    if mask is not None and positions_first(mask, positions):
        mask = mask.T
    if mask is None or (mask.shape != positions and (mask.numel(),) != tuple(positions)):
        return flat
    return flat[mask.flatten().to(flat.device)]
