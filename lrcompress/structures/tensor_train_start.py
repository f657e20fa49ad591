"""The start of a tensor-train fit: TensorLy's TT-SVD of the table with each mode whitened."""

from __future__ import annotations

from math import prod

from torch import Tensor

from lrcompress.metrics.root import root_of
from lrcompress.structures.modes import along, torch_backend
from lrcompress.structures.tensor_train_fit import Shape, TensorTrainFit

_LARGEST_FULL_SVD = 1024  # shorter side of an unfolding; a randomised SVD is as good a start


def whitened_tt_svd(table: Tensor, fit: TensorTrainFit, ranks: tuple[int, ...]) -> list[Tensor]:
    """Cores of the given ranks for a table (n, m) without padding."""
    tokens, features = fit.shape.tokens, fit.shape.features
    padded = table.new_zeros(prod(tokens), table.shape[1])
    padded[: len(table)] = table
    roots = [root_of(x[None]) for x in (*fit.frequencies, *fit.sensitivities)]
    tensor = padded.reshape(*tokens, *features)
    for mode, root in enumerate(roots):
        tensor = along(tensor, mode, root.right)
    left = [prod(tokens[:k]) * prod(features[:k]) for k in range(1, len(tokens))]
    total = prod(tokens) * prod(features)
    shorter = max(min(rows, total // rows) for rows in left)
    method = "truncated_svd" if shorter <= _LARGEST_FULL_SVD else "randomized_svd"
    with torch_backend() as tensorly:
        found = tensorly.decomposition.tensor_train_matrix(
            tensor.to(table.dtype), rank=(1, *ranks, 1), svd=method, random_state=0
        )
    cores = []
    for k, core in enumerate(found.factors):  # (r, v, d, r')
        core = along(core.double(), 1, roots[k].right_inverse)
        core = along(core, 2, roots[len(tokens) + k].right_inverse)
        cores.append(core.to(table.dtype).contiguous())
    return cores


def joined(held: list[Tensor], added: list[Tensor] | None, shape: Shape) -> list[Tensor]:
    """Cores of the larger ranks for the sum of both tables; remaining ranks are zero."""
    cores = []
    for k, size in enumerate(shape.cores):
        core = held[k].new_zeros(size)
        before, _, _, after = held[k].shape
        core[:before, :, :, :after] = held[k]
        if added is not None:
            first = 0 if k == 0 else before
            last = 0 if k == len(held) - 1 else after
            core[first : first + len(added[k]), :, :, last : last + added[k].shape[3]] = added[k]
        cores.append(core)
    return cores
