"""Which rows of a layer are padding, told by the shape of the attention mask alone."""

from __future__ import annotations

import torch
from torch import Tensor


def positions_first(mask: Tensor | None, positions: torch.Size) -> bool:
    """(positions, examples), as torch's recurrent layers have it."""
    return mask is not None and mask.shape != positions and mask.T.shape == positions


def without_padding(rows: Tensor, positions: torch.Size, mask: Tensor | None) -> Tensor:
    """(*positions, ...) -> (kept, ...). mask: (examples, positions), true where a token is.

    Rows that the mask does not fit (pooled vectors, a table of positions) are all kept.
    """
    flat = rows.reshape(positions.numel(), *rows.shape[len(positions) :])
    if mask is not None and positions_first(mask, positions):
        mask = mask.T
    if mask is None or (mask.shape != positions and (mask.numel(),) != tuple(positions)):
        return flat
    return flat[mask.flatten().to(flat.device)]
