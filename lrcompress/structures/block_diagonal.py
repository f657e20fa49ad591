"""Block-diagonal plus low rank.

W = blockdiag(D_1 .. D_b) + U V;  D: (b, p, q)  U: (m, r)  V: (r, n)

The low-rank part need not match the weight where the blocks are. Once half of the weight is kept,
this is worth more than the rank that the blocks cost. With a `chunk` the low-rank part is stored as
in Interpolative, which saves r^2 scalars.

Fitted by alternation. Given V, the rows i of (U, D) are a linear least-squares problem with basis
[V; S_i], where S_i selects block i's columns. It is solved exactly for one block row after another
(a full G couples them); then for U alone, whose solution does not depend on G; then the same for
the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.balance import balanced
from lrcompress.structures.block_modules import BlockDiagonalLinear
from lrcompress.structures.block_rows import (
    Blocked,
    Form,
    Parts,
    Residual,
    Side,
    alternate,
    block_diagonal,
    block_sizes,
    by_diagonal_blocks,
    diagonal_blocks,
)
from lrcompress.structures.factorized import bias_like, parameter_like
from lrcompress.structures.interpolative import Interpolative
from lrcompress.structures.low_rank import LowRank
from lrcompress.structures.solve import cholesky, pcg, rows_solved
from lrcompress.structures.structure import LINEAR_KINDS, Factors, FitTask, Structure, check_size

_STEPS = 200  # of conjugate gradients, if there are only blocks
# Sizes fitted for loss curves. On MiniLM's layers 16 blocks lose less than 8 or 32 up to three
# quarters of the weight. Below two fifths low rank is as good.
_BLOCKS, _KEPT = 16, (0.4, 0.55, 0.7, 0.85)
_SMALLEST = 128  # fewest features of a layer for which loss curves are fitted


@dataclass(frozen=True)
class BlockDiagonal(Structure):
    """`blocks` blocks on the diagonal plus a low-rank part of `rank`, which may be 0.

    chunk: if not 0, the low-rank part is stored as Interpolative with this chunk; 0: two factors.
    """

    rank: int
    blocks: int
    chunk: int = 0
    type_name: ClassVar[str] = "block_diagonal"
    kinds: ClassVar[frozenset[Kind]] = LINEAR_KINDS

    def check_sizes(self, spec: LayerSpec) -> None:
        largest = min(spec.out_features, spec.in_features)
        check_size(spec, "blocks", self.blocks, largest)
        if self.rank:
            self._rest.check_sizes(spec)
        elif self.chunk and largest % self.chunk:
            raise PlanError(
                f"{spec.name}: chunks of {self.chunk} do not divide the {largest} features; "
                'leave out "chunk"'
            )

    @property
    def _rest(self) -> LowRank | Interpolative:
        return Interpolative(self.rank, self.chunk) if self.chunk else LowRank(self.rank)

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        rest = self._rest.factor_shapes(spec) if self.rank else {}
        return {"blocks": (self.blocks, *block_sizes(spec, self.blocks)), **rest}

    def weight_params(self, spec: LayerSpec) -> int:
        return self.blocks * prod(block_sizes(spec, self.blocks)) + self._rest.weight_params(spec)

    def _fit(self, task: FitTask) -> Factors:
        spec = task.spec
        problem = Blocked.of(task.weight, task.whitening, self.blocks)
        parts = self._start(problem, task)
        turned = spec.out_features < spec.in_features
        if turned:  # fewer products with the larger moment
            problem, parts = problem.mT, _turned(parts)
        if self.rank == 0:
            parts = (parts[0], parts[1], _only_blocks(problem))
        else:
            parts = alternate(problem, parts, FORM, quick=task.quick)
        if turned:
            problem, parts = problem.mT, _turned(parts)
        return self._factors(problem, parts, task)

    def _start(self, problem: Blocked, task: FitTask) -> Parts:
        """Scaled and padded (U, V, D): those of `start`, extended by a low-rank fit of the rest."""
        weight, spec, start = task.weight, task.spec, task.start
        m, n, (p, q) = spec.out_features, spec.in_features, block_sizes(spec, self.blocks)
        blocks = weight.new_zeros(self.blocks, p, q, dtype=torch.float64)
        left, right = blocks.new_zeros(m, 0), blocks.new_zeros(0, n)
        if start is not None and start["blocks"].shape == blocks.shape:
            blocks = start["blocks"].to(blocks)
            given = _product(start, spec)
            if given is not None and given[0].shape[1] <= self.rank:
                left, right = (x.to(blocks) for x in given)
        missing = self.rank - left.shape[1]
        if missing:
            rest = weight[0] - left @ right - block_diagonal(blocks)[:m, :n]
            more = LowRank(missing).fit(rest[None], task.whitening, spec)
            left = torch.cat([left, more["left"][0]], -1)
            right = torch.cat([right, more["right"][0]])
        padded_left = blocks.new_zeros(self.blocks * p, self.rank)
        padded_right = blocks.new_zeros(self.rank, self.blocks * q)
        padded_left[:m], padded_right[:, :n] = left, right
        rows, columns = problem.left.scale, problem.right.scale
        scaled = rows.reshape(-1, p, 1) * blocks * columns.reshape(-1, 1, q)
        return rows[:, None] * padded_left, padded_right * columns, scaled

    def _factors(self, problem: Blocked, parts: Parts, task: FitTask) -> Factors:
        u, v, d = parts
        rows, columns = problem.left.scale, problem.right.scale
        blocks = d / rows.reshape(self.blocks, -1, 1) / columns.reshape(self.blocks, 1, -1)
        if not self.rank:
            return {"blocks": blocks}
        left = (u / rows[:, None])[: task.spec.out_features]
        right = (v / columns)[:, : task.spec.in_features]
        rest = self._rest
        if isinstance(rest, Interpolative):
            return {"blocks": blocks, **rest.store(left, right, task.whitening, task.spec)}
        return {"blocks": blocks, **balanced(left[None], right[None])}

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        whole = block_diagonal(factors["blocks"])[None, : spec.out_features, : spec.in_features]
        return whole + self._rest.dense(factors, spec) if self.rank else whole

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        features = spec.out_features, spec.in_features
        rest = self._rest.build(layer, spec, factors, None) if self.rank else None
        blocks = parameter_like(factors["blocks"].mT, layer)
        built = BlockDiagonalLinear(blocks, rest, bias_like(bias, layer), features)
        return built.train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        m, n = spec.out_features, spec.in_features
        if spec.kind not in cls.kinds or min(m, n) < _SMALLEST:
            return ()
        blocks = cls(0, _BLOCKS).weight_params(spec)
        rests = (Interpolative.holding(kept * m * n - blocks, spec) for kept in _KEPT)
        return (tuple(cls(rest.rank, _BLOCKS, rest.chunk) for rest in rests),)


def _product(factors: Factors, spec: LayerSpec) -> tuple[Tensor, Tensor] | None:
    """U and V of the low-rank part in either storage form; None without one."""
    if "left" in factors:
        return factors["left"][0], factors["right"][0]
    if "kept" in factors:
        return Interpolative(int(factors["kept"].sum())).product(factors, spec)
    return None


def _turned(parts: Parts) -> Parts:
    u, v, d = parts
    return v.mT.contiguous(), u.mT.contiguous(), d.mT.contiguous()


def _error(weight: Tensor, parts: Parts) -> Tensor:
    u, v, d = parts
    error = weight - u @ v
    diagonal_blocks(error, len(d)).sub_(d)
    return error


def _fit_rows_(residual: Residual, parts: Parts) -> None:
    """Update U and D block row by block row, then all of U; changes U, D and residual in place."""
    u, v, d = parts
    right, rank = residual.right, len(v)
    seen = right.after(v)  # V C: (r, n)
    gram = seen @ v.mT
    roots = cholesky(_grams(gram, seen, right))
    for i in range(len(d)):
        rows, columns = residual.left.rows(i), right.rows(i)
        force = residual.force(i)
        pull = torch.cat([force @ v.mT, force[:, columns]], -1)  # (p, r + q)
        step = rows_solved(pull, roots[i])
        low, block = step[:, :rank], step[:, rank:]
        u[rows] += low
        d[i] += block
        residual.error[rows] -= low @ v
        residual.error[rows, columns] -= block
        residual.image[rows] -= low @ seen
        if right.gram is None:
            residual.image[rows, columns] -= block
        else:
            residual.image[rows] -= block @ right.gram[columns]
    step = rows_solved(residual.image @ v.mT, cholesky(gram))
    u += step
    residual.error -= step @ v
    residual.image -= step @ seen


FORM = Form(_error, _turned, _fit_rows_)


def _grams(gram: Tensor, seen: Tensor, right: Side) -> Tensor:
    """Return [V; S_i] C [V; S_i]^T for each block: (b, r + q, r + q)."""
    cross = seen.reshape(len(seen), right.blocks, -1).transpose(0, 1)  # (b, r, q)
    if right.gram is None:
        own = torch.eye(right.size).to(gram).expand(right.blocks, -1, -1)
    else:
        own = diagonal_blocks(right.gram, right.blocks)
    top = torch.cat([gram.expand(right.blocks, -1, -1), cross], -1)
    return torch.cat([top, torch.cat([cross.mT, own], -1)], -2)


def _only_blocks(problem: Blocked) -> Tensor:
    """Solve for D without a low-rank part: sum_j G_ij D_j C_ji = [G W C]_ii, linear in D."""
    left, right = problem.left, problem.right
    rhs = diagonal_blocks(left.before(right.after(problem.weight)), left.blocks)
    if left.gram is None or right.gram is None:  # the blocks are not coupled
        return by_diagonal_blocks(left, right, rhs)
    g = left.gram.reshape(left.blocks, left.size, left.blocks, left.size).transpose(1, 2)
    c = right.gram.reshape(right.blocks, right.size, right.blocks, right.size).transpose(1, 2)

    def applied(d: Tensor) -> Tensor:
        return (g @ d @ c.transpose(0, 1)).sum(1)  # sum over j of G_ij D_j C_ji

    return pcg(
        applied,
        rhs,
        lambda x: by_diagonal_blocks(left, right, x),
        torch.zeros_like(rhs),
        _STEPS,
        tolerance=1e-12,
    )
