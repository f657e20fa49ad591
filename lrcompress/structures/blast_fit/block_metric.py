"""A second moment split for BLAST: roots of its diagonal blocks, and the coupling of the blocks.

A product with a block-diagonal matrix keeps the BLAST structure. So with M_jj = R_j R_j^T the
weight is fitted as W blkdiag(R) and its factors as R_j^T V_j. The remaining moment,
blkdiag(R)^-1 M blkdiag(R)^-T, has identity blocks on its diagonal, so alternating steps need no
solve with the moment. If it is the identity, the fit is a plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.metrics.root import RELATIVE_FLOOR, Root
from lrcompress.structures.blast_fit.factors import block_length
from lrcompress.structures.solve import check_finite

_UNCOUPLED = 1e-9  # relative to the identity; below the rounding of moments stored in float32


@dataclass(frozen=True, eq=False)
class BlockMetric:
    """The metric of one group's features, padded to whole blocks.

    root: R (b, q, q), or (b, q) for a diagonal moment, or None for the identity; in float64.
    inverse: R^-1 in the same form, a pseudo-inverse where features are dead.
    coupling: (b q, b q) with identity blocks on its diagonal; None if blocks are not coupled.
    """

    root: Tensor | None = None
    inverse: Tensor | None = None
    coupling: Tensor | None = None

    def whiten(self, columns: Tensor) -> Tensor:
        """Return R_j^T X_j for X: (b, q, k)."""
        return _transposed_times(self.root, columns)

    def unwhiten(self, columns: Tensor) -> Tensor:
        """Return R_j^-T Y_j for Y: (b, q, k)."""
        return _transposed_times(self.inverse, columns)


def block_metric(
    root: Root, group: int, size: int, blocks: int, coupling_dtype: torch.dtype
) -> BlockMetric:
    """Compute the block metric of the moment of `root`; size: its features, without padding."""
    key = group, blocks, coupling_dtype
    latest = _LATEST.get(root)
    if latest is not None and latest[0] == key:
        return latest[1]
    gram = root.gram()
    if gram is None:
        return BlockMetric()
    check_finite(gram, "the moments of its data are")
    padding = blocks * block_length(size, blocks) - size
    metric = _decomposed(_padded(gram[group], padding), blocks, coupling_dtype)
    _LATEST[root] = key, metric
    return metric


# Cache: a loss curve needs several fits in one metric, and this is a large part of a short fit.
_LATEST: WeakKeyDictionary[Root, tuple[tuple[int, int, torch.dtype], BlockMetric]] = (
    WeakKeyDictionary()
)


def _padded(gram: Tensor, padding: int) -> Tensor:
    """Pad a moment: padding features get the mean weight and no coupling."""
    if padding == 0:
        return gram
    wide = functional.pad(gram, (0, padding) * gram.dim())
    diagonal = wide if wide.dim() == 1 else wide.diagonal()
    mean = diagonal.mean()
    diagonal[-padding:] = mean if bool(mean > 0) else 1.0
    return wide


def _decomposed(gram: Tensor, blocks: int, coupling_dtype: torch.dtype) -> BlockMetric:
    """Split a moment, gram: (b q, b q) or diagonal (b q,)."""
    if gram.dim() == 1:
        root = gram.sqrt().view(blocks, -1)
        return BlockMetric(root, torch.where(root > 0, root.reciprocal(), 0.0))
    size, q = gram.shape[0], gram.shape[0] // blocks
    rows = gram.view(blocks, q, size)
    diagonal = torch.stack([rows[j, :, j * q : (j + 1) * q] for j in range(blocks)])  # (b, q, q)
    root, inverse = _roots(diagonal)
    half = (inverse @ rows).reshape(size, size)  # blkdiag(R)^-1 M
    coupling = (inverse @ half.mT.reshape(blocks, q, size)).reshape(size, size)  # and its transpose
    block = torch.arange(size, device=gram.device) // q
    apart = block.unsqueeze(0) != block.unsqueeze(1)
    if float((coupling * apart).abs().max()) <= _UNCOUPLED:
        return BlockMetric(root, inverse)
    return BlockMetric(root, inverse, coupling.to(coupling_dtype))


def _roots(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return R with R R^T = M and its (pseudo-)inverse, for M: (b, q, q)."""
    root, failed = torch.linalg.cholesky_ex(blocks)
    pivots = root.diagonal(dim1=1, dim2=2).square()
    safe = pivots.amin(1) > RELATIVE_FLOOR * blocks.diagonal(dim1=1, dim2=2).amax(1)
    if not bool(failed.any()) and bool(safe.all()):
        eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        return root, torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
    values, vectors = torch.linalg.eigh(blocks)
    values = torch.where(values > RELATIVE_FLOOR * values[:, -1:].clamp_min(0), values, 0.0)
    inverse = torch.where(values > 0, values.rsqrt(), 0.0)
    return vectors * values.sqrt().unsqueeze(1), (vectors * inverse.unsqueeze(1)).mT


def _transposed_times(factor: Tensor | None, columns: Tensor) -> Tensor:
    if factor is None:
        return columns
    return columns * factor.unsqueeze(-1) if factor.dim() == 2 else factor.mT @ columns
