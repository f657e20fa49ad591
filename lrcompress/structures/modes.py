"""Helpers for tensors and moments whose features have several indices (modes), and TensorLy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def torch_backend() -> Iterator[Any]:
    """Yield TensorLy with the torch backend; the user's own backend is not changed.

    Imported here: the library loads without it.
    """
    import tensorly

    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield tensorly


def along(tensor: Tensor, mode: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change`, such as `Root.right`, to the vectors along one mode, as rows (1, rows, k)."""
    rows = tensor.movedim(mode, -1)
    return change(rows.reshape(1, -1, rows.shape[-1])).reshape(rows.shape).movedim(-1, mode)


def times(x: Tensor, gram: Tensor | None) -> Tensor:
    """Return x C for x: (rows, n) and the `Root.gram` C of a layer with one group."""
    if gram is None:
        return x
    return x * gram if gram.dim() == 2 else x @ gram[0]


def separable(
    gram: Tensor | None, outer: int, inner: int, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return C_a (a, a) and C_b (b, b) whose Kronecker product has the partial traces of C."""
    if gram is None:
        over, under = (
            torch.eye(size, dtype=like.dtype, device=like.device) for size in (outer, inner)
        )
        return over, under
    if gram.dim() == 2:
        pairs = gram[0].reshape(outer, inner)
        over, under = torch.diag(pairs.sum(1)), torch.diag(pairs.sum(0))
    else:
        square = gram[0].reshape(outer, inner, outer, inner)
        over = square.diagonal(dim1=1, dim2=3).sum(-1)
        under = square.diagonal(dim1=0, dim2=2).sum(-1)
    trace = under.diagonal().sum()
    return over, under / torch.where(trace > 0, trace, 1.0)
