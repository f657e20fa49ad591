"""The fit of a sum of Kronecker products in any metric; kronecker.py describes the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lrcompress.metrics import Whitening
from lrcompress.metrics.root import Root
from lrcompress.structures.solve import check_finite, cholesky, pcg, rows_solved

_STEPS = 8  # of conjugate gradients for one factor
_POWER_STEPS = 20  # towards the Kronecker product nearest to a moment; an approximation suffices
_SMALLEST = 1e-6  # eigenvalue floor of such a moment, relative to its largest; need not be exact

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Split:
    """The sizes of A (m1, n1) and B (m2, n2). The weight is padded to (m1 m2, n1 n2)."""

    m1: int
    m2: int
    n1: int
    n2: int


def rearranged(matrix: Tensor, split: Split) -> Tensor:
    """Rearrange (m1 m2, n1 n2) -> (m1 n1, m2 n2): A (x) B becomes vec(A) vec(B)^T."""
    cells = matrix.reshape(split.m1, split.m2, split.n1, split.n2)
    return cells.transpose(1, 2).reshape(split.m1 * split.n1, split.m2 * split.n2)


def restored(matrix: Tensor, split: Split) -> Tensor:
    """The inverse of `rearranged`."""
    cells = matrix.reshape(split.m1, split.n1, split.m2, split.n2)
    return cells.transpose(1, 2).reshape(split.m1 * split.m2, split.n1 * split.n2)


@dataclass(frozen=True, eq=False)
class Moment:
    """A moment of padded features, and roots of its nearest Kronecker product."""

    gram: Tensor | None  # (k, k), or (k,) if diagonal; padding has weight zero
    first: Tensor  # (k1, k1): S1 with moment ~ (S1^T S1) (x) (S2^T S2)
    second: Tensor

    @classmethod
    def of(cls, root: Root, features: int, first: int, second: int, like: Tensor) -> Self:
        gram = root.gram()
        ones = torch.eye(first).to(like), torch.eye(second).to(like)
        if gram is None and first * second == features:
            return cls(None, *ones)
        if gram is None:
            gram = like.new_ones(1, features)
        gram = gram[0].to(like)
        scale = float((gram if gram.dim() == 1 else gram.diagonal()).mean())
        padded = gram.new_zeros((first * second,) * gram.dim())
        padded[(slice(features),) * gram.dim()] = gram
        if scale <= 0:
            return cls(padded, *ones)
        return cls(padded, *(_root(x) for x in _nearest_product(padded, first, second)))

    def times(self, x: Tensor) -> Tensor:
        """Return moment x."""
        if self.gram is None:
            return x
        return self.gram[:, None] * x if self.gram.dim() == 1 else self.gram @ x


@dataclass(frozen=True, eq=False)
class KroneckerFit:
    weight: Tensor  # (m1 m2, n1 n2), padded
    left: Moment
    right: Moment
    split: Split

    @classmethod
    def of(cls, weight: Tensor, whitening: Whitening, split: Split) -> Self:
        """weight: (m, n).

        Raises:
            FitError: the weight or its whitening is not finite.
        """
        m, n = weight.shape
        weight = weight.to(torch.float64)
        check_finite(whitening.whiten(weight[None]))
        padded = weight.new_zeros(split.m1 * split.m2, split.n1 * split.n2)
        padded[:m, :n] = weight
        left = Moment.of(whitening.output, m, split.m1, split.m2, weight)
        right = Moment.of(whitening.input, n, split.n1, split.n2, weight)
        return cls(padded, left, right, split)

    def weighed(self, x: Tensor) -> Tensor:
        """Return G X C."""
        return self.right.times(self.left.times(x).mT).mT

    def error(self, pair: Pair) -> Tensor:
        return self.weight - restored(pair[0].flatten(1).mT @ pair[1].flatten(1), self.split)

    def loss(self, pair: Pair) -> float:
        error = self.error(pair)
        return 0.5 * float((error * self.weighed(error)).sum())

    def best(self, rank: int, given: Pair | None, *, sweeps: int) -> Pair:
        """Alternate from the best of the starts while the loss falls."""
        plain = self.plain_terms(self.weight, rank)
        if self.left.gram is None and self.right.gram is None:
            return plain
        starts = [plain, self.whitened_terms(self.weight, rank)]
        if given is not None and len(given[0]) <= rank:
            starts.append(self.extended(given, rank))
        pair = min(starts, key=self.loss)
        loss = self.loss(pair)
        for _ in range(sweeps):
            found = self.sweep(pair)
            reached = self.loss(found)
            if not reached < loss:
                break
            pair, loss = found, reached
        return pair

    def plain_terms(self, matrix: Tensor, rank: int) -> Pair:
        u, s, vt = torch.linalg.svd(rearranged(matrix, self.split), full_matrices=False)
        half, split = s[:rank].sqrt(), self.split
        left = (u[:, :rank] * half).mT.reshape(-1, split.m1, split.n1)
        return left, (half[:, None] * vt[:rank]).reshape(-1, split.m2, split.n2)

    def whitened_terms(self, matrix: Tensor, rank: int) -> Pair:
        """The best terms for moments replaced by their nearest Kronecker products."""
        rows, columns = (torch.kron(x.first, x.second) for x in (self.left, self.right))
        left, right = self.plain_terms(rows @ matrix @ columns.mT, rank)
        return (
            _unwhitened(left, self.left.first, self.right.first),
            _unwhitened(right, self.left.second, self.right.second),
        )

    def extended(self, given: Pair, rank: int) -> Pair:
        """Add terms with A = 0 to the given ones; their B is the fit of the residual."""
        left, right = (x.to(self.weight) for x in given)
        missing = rank - len(left)
        if missing == 0:
            return left, right
        more = self.whitened_terms(self.error((left, right)), missing)
        return torch.cat([left, torch.zeros_like(more[0])]), torch.cat([right, more[1]])

    def sweep(self, pair: Pair) -> Pair:
        left, right = pair
        first = self.left.first, self.right.first
        second = self.left.second, self.right.second
        left = self._solved(left, right, first, second, turned=False)
        return left, self._solved(right, left, second, first, turned=True)

    def _solved(
        self, free: Tensor, fixed: Tensor, own: Pair, other: Pair, *, turned: bool
    ) -> Tensor:
        """Solve for the factors `free` (K, p, q), given the `fixed` ones."""
        basis = fixed.flatten(1)  # (K, p' q')
        seen = (other[0] @ fixed @ other[1].mT).flatten(1)
        terms = cholesky(seen @ seen.mT)
        rows, columns = (cholesky(x.mT @ x) for x in own)

        def dense(x: Tensor) -> Tensor:
            product = x.flatten(1).mT @ basis
            return restored(product.mT if turned else product, self.split)

        def projected(matrix: Tensor) -> Tensor:
            cells = rearranged(self.weighed(matrix), self.split)
            return (basis @ (cells if turned else cells.mT)).reshape(free.shape)

        def preconditioned(x: Tensor) -> Tensor:
            x = torch.cholesky_solve(x.flatten(1), terms).reshape(x.shape)
            x = torch.cholesky_solve(x, rows)
            return rows_solved(x, columns)

        return pcg(
            lambda x: projected(dense(x)),
            projected(self.weight),
            preconditioned,
            free,
            _STEPS,
            tolerance=1e-10,
        )


def _unwhitened(terms: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return S^-1 X T^-T."""
    halfway: Tensor = torch.linalg.solve(rows, terms)
    done: Tensor = torch.linalg.solve(columns, halfway.mT)
    return done.mT


def _root(moment: Tensor) -> Tensor:
    """Symmetric S with S S = moment, with small eigenvalues raised to a floor."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(_SMALLEST * float(values[-1].clamp_min(1e-300)))
    root: Tensor = (vectors * values.sqrt()) @ vectors.mT
    return root


def _nearest_product(gram: Tensor, first: int, second: int) -> Pair:
    """M1, M2 with M1 (x) M2 nearest to gram: the leading singular pair of the rearranged gram."""
    diagonal = gram.dim() == 1
    cells = (
        gram.reshape(first, second)
        if diagonal
        else rearranged(gram, Split(first, second, first, second))
    )
    start = torch.ones(second) if diagonal else torch.eye(second).flatten()
    right = start.to(gram)
    left = cells @ right
    for _ in range(_POWER_STEPS):
        left = cells @ right
        left = left / left.norm()
        right = cells.mT @ left
    if diagonal:
        return torch.diag(left), torch.diag(right)
    return left.reshape(first, first), right.reshape(second, second)
