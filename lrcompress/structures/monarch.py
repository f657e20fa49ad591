"""Monarch: a b x b grid of blocks, each of low rank (Dao et al. 2022, generalised).

W_ij = L_ij R_ij;  L: (b, b, p, r)  R: (b, b, r, q), first axes i, j

The module is two batched products with a transpose between them. In a plain or diagonal metric the
truncated SVD of each block is the best fit. A full metric couples the blocks, and alternating least
squares continues from there: given R, block row i is linear in [L_i1 .. L_ib] with basis
K_i = diag(R_i1 .. R_ib), and is solved exactly by K_i C K_i^T, one block row after another. The
block columns follow in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.block_modules import MonarchLinear
from lrcompress.structures.block_rows import (
    Blocked,
    Form,
    Parts,
    Residual,
    alternate,
    block_diagonal,
    block_sizes,
    by_diagonal_blocks,
)
from lrcompress.structures.solve import cholesky, rows_solved
from lrcompress.structures.structure import LINEAR_KINDS, Factors, FitTask, Structure, check_size

# Sizes fitted for loss curves. On MiniLM's layers, compared to low rank of the same size, four
# blocks lose up to half less where outputs are summed next (the last layer's), and 5 to 20 % less
# for values below half of the weight. They lose more for queries and keys. Eight are not better.
_BLOCKS, _KEPT = 4, (0.15, 0.3, 0.45, 0.6)
_SMALLEST = 128  # fewest features of a layer for which loss curves are fitted


@dataclass(frozen=True)
class Monarch(Structure):
    """`blocks` x `blocks` blocks, each of rank `rank`."""

    rank: int
    blocks: int
    type_name: ClassVar[str] = "monarch"
    kinds: ClassVar[frozenset[Kind]] = LINEAR_KINDS

    def check_sizes(self, spec: LayerSpec) -> None:
        largest = min(spec.out_features, spec.in_features)
        check_size(spec, "blocks", self.blocks, largest)
        p, q = block_sizes(spec, self.blocks)
        limit = f"its {self.blocks} x {self.blocks} blocks are {p} x {q}"
        check_size(spec, "rank", self.rank, min(p, q), limit=limit)

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        (p, q), inner = block_sizes(spec, self.blocks), self.blocks * self.rank
        return {"left": (self.blocks, p, inner), "right": (self.blocks, inner, q)}

    def _fit(self, task: FitTask) -> Factors:
        problem = Blocked.of(task.weight, task.whitening, self.blocks)
        parts = self._start(problem, task.start)
        if problem.plain:
            return _unscaled(problem, parts)
        turned = task.spec.out_features < task.spec.in_features
        if turned:  # fewer products with the larger moment
            problem, parts = problem.mT, _turned(parts)
        parts = alternate(problem, parts, FORM, quick=task.quick)
        return _unscaled(problem.mT, _turned(parts)) if turned else _unscaled(problem, parts)

    def _start(self, problem: Blocked, start: Factors | None) -> Parts:
        """The best blocks for the block-diagonal part of the metric, or `start` if it is better.

        Components that `start` lacks get R from the steepest descent, and L = 0.
        """
        own = _best_blocks(problem, _cells(problem.weight, self.blocks), self.rank)
        blocks, p, q = self.blocks, problem.left.size, problem.right.size
        if start is None or start["left"].shape[:2] != (blocks, p):
            return own
        given = _scaled(problem, start)
        missing = self.rank - given[0].shape[-1]
        if missing < 0 or start["right"].shape[-1] != q:
            return own
        error = _error(problem.weight, given)
        if problem.loss(_error(problem.weight, own)) < problem.loss(error):
            return own
        if missing == 0:
            return given
        pull = problem.left.before(problem.right.after(error))
        pull = by_diagonal_blocks(problem.left, problem.right, _cells(pull, blocks))
        more = _best_blocks(problem, pull, missing)
        left = torch.cat([given[0], torch.zeros_like(more[0])], -1)
        return left, torch.cat([given[1], more[1]], -2)

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        left, right = _unpacked(factors)
        return _assembled(left @ right)[None, : spec.out_features, : spec.in_features]

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        features = spec.out_features, spec.in_features
        return MonarchLinear.like(layer, factors, bias, features).train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        m, n = spec.out_features, spec.in_features
        if spec.kind not in cls.kinds or min(m, n) < _SMALLEST:
            return ()
        per_rank = cls(1, _BLOCKS).weight_params(spec)
        return (tuple(cls(int(kept * m * n / per_rank), _BLOCKS) for kept in _KEPT),)


def _packed(left: Tensor, right: Tensor) -> Factors:
    """Pack to left: (b, p, b r), a row of blocks each, and right: (b, b r, q), a column each."""
    return {
        "left": left.transpose(1, 2).flatten(2),
        "right": right.transpose(0, 1).flatten(1, 2),
    }


def _unpacked(factors: Factors) -> Parts:
    """Return L: (b, b, p, r) and R: (b, b, r, q)."""
    left, right = factors["left"], factors["right"]
    blocks, p, _ = left.shape
    return (
        left.reshape(blocks, p, blocks, -1).transpose(1, 2),
        right.reshape(blocks, blocks, -1, right.shape[-1]).transpose(0, 1),
    )


def _unscaled(problem: Blocked, parts: Parts) -> Factors:
    rows = problem.left.scale.reshape(-1, 1, problem.left.size, 1)
    columns = problem.right.scale.reshape(1, -1, 1, problem.right.size)
    return _packed(parts[0] / rows, parts[1] / columns)


def _scaled(problem: Blocked, factors: Factors) -> Parts:
    left, right = _unpacked(factors)
    rows = problem.left.scale.reshape(-1, 1, problem.left.size, 1)
    columns = problem.right.scale.reshape(1, -1, 1, problem.right.size)
    return left.to(rows) * rows, right.to(columns) * columns


def _turned(parts: Parts) -> Parts:
    left, right = parts
    return right.transpose(0, 1).mT.contiguous(), left.transpose(0, 1).mT.contiguous()


def _cells(matrix: Tensor, blocks: int) -> Tensor:
    """Split into blocks: (b p, b q) -> (b, b, p, q)."""
    p, q = matrix.shape[0] // blocks, matrix.shape[1] // blocks
    return matrix.reshape(blocks, p, blocks, q).transpose(1, 2)


def _assembled(cells: Tensor) -> Tensor:
    blocks, _, p, q = cells.shape
    return cells.transpose(1, 2).reshape(blocks * p, blocks * q)


def _error(weight: Tensor, parts: Parts) -> Tensor:
    return weight - _assembled(parts[0] @ parts[1])


def _best_blocks(problem: Blocked, cells: Tensor, rank: int) -> Parts:
    """Truncated SVD of each block, whitened by the diagonal blocks of the metric."""
    rows, columns = problem.left.roots, problem.right.roots
    if rows is not None:
        cells = rows.mT[:, None] @ cells
    if columns is not None:
        cells = cells @ columns
    u, s, vt = torch.linalg.svd(cells, full_matrices=False)
    half = s[..., :rank].sqrt()
    left, right = u[..., :rank] * half.unsqueeze(-2), half.unsqueeze(-1) * vt[..., :rank, :]
    if rows is not None:
        left = torch.linalg.solve_triangular(rows.mT[:, None], left, upper=True)
    if columns is not None:
        right = torch.linalg.solve_triangular(columns, right, upper=False, left=False)
    return left, right


def _fit_rows_(residual: Residual, parts: Parts) -> None:
    """Update L one block row after another; changes L and the residual in place."""
    left, right = parts
    side, (blocks, _, r, q) = residual.right, right.shape
    by_rows = None if side.gram is None else side.gram.reshape(blocks, q, -1)
    for i in range(blocks):
        basis, rows = right[i], residual.left.rows(i)  # (b, r, q)
        image = block_diagonal(basis) if by_rows is None else (basis @ by_rows).flatten(0, 1)
        gram = _onto(image, basis)
        pull = _onto(residual.force(i), basis)  # (p, b r)
        step = rows_solved(pull, cholesky(gram))
        cells = step.reshape(len(step), blocks, r).transpose(0, 1)  # (b, p, r)
        left[i] += cells
        residual.error[rows] -= (cells @ basis).transpose(0, 1).flatten(1)
        residual.image[rows] -= step @ image


FORM = Form(_error, _turned, _fit_rows_)


def _onto(x: Tensor, basis: Tensor) -> Tensor:
    """Return x K^T for K = diag(basis);  x: (rows, b q)  basis: (b, r, q) -> (rows, b r)."""
    cells = x.reshape(len(x), len(basis), -1).transpose(0, 1) @ basis.mT  # (b, rows, r)
    return cells.transpose(0, 1).flatten(1)
