"""Fit of a tensor-train matrix in a layer's metric.

E[(i1 .. ik), (j1 .. jk)] = X1[i1, j1] X2[i2, j2] ... Xk[ik, jk], a product of matrices;
X: (r, v, d, r') with r = 1 before the first core and r' = 1 after the last.

From a start (`tensor_train_start`), one core after another is improved in the true metric while the
others are orthonormal: linear least squares by conjugate gradients. The preconditioner treats token
frequencies and output sensitivities as products over the modes. No sweep increases the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from lrcompress.metrics import Whitening
from lrcompress.structures.modes import separable, times
from lrcompress.structures.solve import check_finite, cholesky, pcg

_ROUNDING = 1e-14  # relative to the loss of a zero table
_SMALL = 2**20  # scalars; a larger table is fitted in float32, as its error is far above rounding
_WORTHWHILE = 1e-3  # share of the loss that a sweep must gain for another to follow


@dataclass(frozen=True)
class Shape:
    """The modes of a table (prod tokens, prod features), padded, and the ranks between cores."""

    tokens: tuple[int, ...]
    features: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def cores(self) -> tuple[tuple[int, int, int, int], ...]:
        bonds = pairwise((1, *self.ranks, 1))
        sizes = zip(self.tokens, self.features, bonds, strict=True)
        return tuple((before, v, d, after) for v, d, (before, after) in sizes)


def product(cores: list[Tensor]) -> Tensor:
    """Multiply neighbouring cores: (r, prod v, prod d, r')."""
    whole = cores[0]
    for core in cores[1:]:
        first, rows, columns, _ = whole.shape
        _, v, d, last = core.shape
        grown = whole.flatten(0, 2) @ core.flatten(1)
        grown = grown.reshape(first, rows, columns, v, d, last).transpose(2, 3)
        whole = grown.reshape(first, rows * v, columns * d, last)
    return whole


def right_orthonormal(cores: list[Tensor]) -> list[Tensor]:
    """Cores of the same table, all but the first with orthonormal rows (r, v d r')."""
    cores = list(cores)
    for k in range(len(cores) - 1, 0, -1):
        q, r = torch.linalg.qr(cores[k].flatten(1).mT)
        cores[k] = q.mT.reshape(cores[k].shape)
        cores[k - 1] = cores[k - 1] @ r.mT
    return cores


class TensorTrainFit:
    def __init__(self, weight: Tensor, whitening: Whitening, shape: Shape) -> None:
        """`weight`: (1, m, n), the transposed table of n tokens without padding."""
        self.shape = shape
        dtype = torch.float64 if weight.numel() <= _SMALL else torch.float32
        self.target = weight[0].mT.to(dtype).contiguous()
        self.inputs, self.outputs = (
            None if gram is None else gram.to(dtype)
            for gram in (whitening.input.gram(), whitening.output.gram())
        )
        total = whitening.loss(weight)
        check_finite(total)
        self.total = float(total)
        self.frequencies, self.sensitivities = self._modes()

    def fit(self, candidates: list[list[Tensor]], *, sweeps: int, steps: int) -> list[Tensor]:
        best = min(candidates, key=self.loss)
        loss = self.loss(best)
        for _ in range(sweeps):
            if loss <= _ROUNDING * self.total:
                break
            cores = self._sweep(right_orthonormal(best), steps)
            after = self.loss(cores)
            if not after < loss:
                break
            flat = loss - after <= _WORTHWHILE * loss
            best, loss = cores, after
            if flat:
                break
        return best

    def loss(self, cores: list[Tensor]) -> float:
        missing = self.target - product(cores)[0, : len(self.target), :, 0]
        return 0.5 * float((missing * self._weighed(missing)).sum())

    def _modes(self) -> tuple[list[Tensor], list[Tensor]]:
        """Frequencies (v,) and sensitivities (d, d) of each mode, as if they were products."""
        tokens, like = self.shape.tokens, self.target
        counts = torch.zeros(prod(tokens), dtype=like.dtype, device=like.device)
        diagonal = torch.ones_like(like[:, 0]) if self.inputs is None else self.inputs[0]
        counts[: len(like)] = diagonal.diagonal() if diagonal.dim() == 2 else diagonal
        frequencies, sensitivities, rest, outputs = [], [], counts[None], self.outputs
        for k, (v, d) in enumerate(zip(tokens, self.shape.features, strict=True)):
            behind = prod(tokens[k + 1 :])
            own, below = separable(rest, v, behind, like=like)
            frequencies.append(own.diagonal())
            rest = below.diagonal()[None]
            own, below = separable(outputs, d, prod(self.shape.features[k + 1 :]), like=like)
            sensitivities.append(own)
            outputs = below[None]
        return frequencies, sensitivities

    def _weighed(self, table: Tensor) -> Tensor:
        """Return C E G for E: (n, m)."""
        return times(times(table.mT, self.inputs).mT, self.outputs)

    def _sweep(self, cores: list[Tensor], steps: int) -> list[Tensor]:
        """Improve each core in turn, and make it orthonormal before the next."""
        cores, last = list(cores), len(cores) - 1
        for k in range(len(cores)):
            cores[k] = self._core(cores, k, steps)
            if k < last:
                q, r = torch.linalg.qr(cores[k].flatten(0, 2))
                cores[k] = q.reshape(*cores[k].shape[:3], -1)
                cores[k + 1] = (r @ cores[k + 1].flatten(1)).reshape(cores[k + 1].shape)
        return cores

    def _core(self, cores: list[Tensor], k: int, steps: int) -> Tensor:
        one = torch.ones(1, 1, 1, 1, dtype=self.target.dtype, device=self.target.device)
        left, right = product([one, *cores[:k]])[0], product([*cores[k + 1 :], one])[..., 0]
        # left: (v<, d<, r)  right: (r', v>, d>)
        r, v, d, after = cores[k].shape
        sizes = (*left.shape[:2], v, d, *right.shape[1:])
        flat_left, flat_right = left.flatten(0, 1), right.flatten(1)

        def spread(core: Tensor) -> Tensor:  # -> (n, m)
            whole = (flat_left @ core.flatten(1)).reshape(-1, after) @ flat_right
            whole = whole.reshape(sizes).permute(0, 2, 4, 1, 3, 5)
            return whole.reshape(prod(self.shape.tokens), -1)[: len(self.target)]

        def gathered(table: Tensor) -> Tensor:  # its adjoint
            padded = table.new_zeros(prod(self.shape.tokens), table.shape[1])
            padded[: len(table)] = table
            rows, _, columns = (sizes[i] for i in (0, 2, 4))
            by_mode = padded.reshape(rows, v, columns, sizes[1], d, sizes[5])
            by_mode = by_mode.permute(0, 3, 1, 4, 2, 5).reshape(-1, flat_right.shape[1])
            return (flat_left.mT @ (by_mode @ flat_right.mT).reshape(len(flat_left), -1)).reshape(
                r, v, d, after
            )

        return pcg(
            lambda core: gathered(self._weighed(spread(core))),
            gathered(self._weighed(self.target)),
            self._preconditioner(k, left, right),
            cores[k],
            steps,
        )

    def _preconditioner(self, k: int, left: Tensor, right: Tensor) -> Callable[[Tensor], Tensor]:
        before = cholesky(self._gram(left, range(k)))
        after = cholesky(self._gram(right.permute(1, 2, 0), range(k + 1, len(self.shape.tokens))))
        middle = cholesky(self.sensitivities[k])
        counts = self.frequencies[k]
        counts = counts.clamp_min(1e-12 * float(counts.max()))

        def precondition(core: Tensor) -> Tensor:
            r, v, d, last = core.shape
            x = torch.cholesky_solve(core.flatten(1), before).reshape(r, v, d, last)
            x = torch.cholesky_solve(x.flatten(0, 2).mT, after).mT.reshape(r, v, d, last)
            x = torch.cholesky_solve(x.movedim(2, 0).flatten(1), middle).reshape(d, r, v, last)
            return x.movedim(0, 2) / counts[:, None, None]

        return precondition

    def _gram(self, part: Tensor, modes: range) -> Tensor:
        """Gram matrix (r, r) of the columns of `part` (v, d, r), in the modes' separable metric."""
        counts, sensitivity = part.new_ones(1), part.new_ones(1, 1)
        for mode in modes:
            counts = torch.kron(counts, self.frequencies[mode])
            sensitivity = torch.kron(sensitivity, self.sensitivities[mode])
        weighed = part.permute(0, 2, 1) @ sensitivity * counts[:, None, None]  # (v, r, d)
        gram: Tensor = part.flatten(0, 1).mT @ weighed.mT.reshape(-1, part.shape[2])
        return gram
