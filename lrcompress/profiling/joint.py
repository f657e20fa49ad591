"""Kronecker factors of a layer's Gauss-Newton matrix, from whole-example gradients.

K-FAC's usual factors (Martens and Grosse 2015) treat the tokens of an example as independent. They
are not: a change of a weight moves all tokens of a sentence the same way, and pooling or attention
adds these moves up. Here the gradient of one example is taken whole, J = sum_t g_t x_t^T, and
E[J^T J], E[J J^T] are the factors (as in Shampoo, Gupta et al. 2018, of the Gauss-Newton gradient).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.metrics import Sensitivity


@dataclass
class RunningJoint:
    """Sums over examples and probes of one use of one weight."""

    input: Tensor | None = None  # sum J^T J: (g, n, n) or diagonal (g, n)
    output: Tensor | None = None  # sum J J^T: (g, m, m) or diagonal (g, m)
    input_mean: Tensor | None = None  # sum J^T j: (g, n)
    bias: Tensor | None = None  # sum j^T j: (g,)
    count: int = 0  # examples times probes

    def add(self, x: Tensor, gradient: Tensor, *, full_limit: int) -> None:
        """x: (examples, positions, g, n), gradient: (examples, positions, g, m), 0 on padding."""
        x = x.detach().to(torch.float32).transpose(1, 2)  # (e, g, t, n)
        gradient = gradient.detach().to(torch.float32).transpose(1, 2)  # (e, g, t, m)
        positions, n = x.shape[-2:]
        m = gradient.shape[-1]
        if positions <= min(m, n):
            self._add_by_positions(x, gradient, full_limit)
        else:
            self._add_by_gradients(gradient.mT @ x, full_limit)
        j = gradient.sum(-2)  # (e, g, m)
        # J^T j = sum_t x_t (g_t . j)
        mean = (x * (gradient @ j.unsqueeze(-1))).sum((0, 2))  # (g, n)
        self.input_mean = _plus(self.input_mean, mean)
        self.bias = _plus(self.bias, j.square().sum((0, 2)))
        self.count += x.shape[0]

    def _add_by_positions(self, x: Tensor, gradient: Tensor, full_limit: int) -> None:
        """J^T J = X^T (Gr Gr^T) X, without the (m, n) gradient: few positions."""
        between_g = gradient @ gradient.mT  # (e, g, t, t)
        between_x = x @ x.mT
        self.input = _plus(self.input, _quadratic(x, between_g, full_limit))
        self.output = _plus(self.output, _quadratic(gradient, between_x, full_limit))

    def _add_by_gradients(self, gradient: Tensor, full_limit: int) -> None:
        """gradient: (e, g, m, n) of each example."""
        examples, groups, m, n = gradient.shape
        stacked = gradient.transpose(0, 1).reshape(groups, examples * m, n)
        full = n <= full_limit
        self.input = _plus(self.input, stacked.mT @ stacked if full else stacked.square().sum(1))
        side = gradient.permute(1, 2, 0, 3).reshape(groups, m, examples * n)
        full = m <= full_limit
        self.output = _plus(self.output, side @ side.mT if full else side.square().sum(2))

    def add_tokens(self, tokens: Tensor, gradient: Tensor, vocabulary: int) -> None:
        """Of a lookup. tokens: (examples, positions), gradient: (examples, positions, 1, m)."""
        gradient = gradient.detach().to(torch.float32).squeeze(2)
        examples = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        keys, where = torch.unique(examples * vocabulary + tokens, return_inverse=True)
        columns = gradient.new_zeros(len(keys), gradient.shape[-1])  # of J, where not zero
        columns.index_add_(0, where.flatten(), gradient.flatten(0, 1))
        diagonal = gradient.new_zeros(vocabulary)
        diagonal.index_add_(0, keys % vocabulary, columns.square().sum(1))
        self.input = _plus(self.input, diagonal[None])
        self.output = _plus(self.output, (columns.mT @ columns)[None])
        self.count += len(tokens)

    def finish(self, examples: int, probes: int) -> Sensitivity | None:
        """None where the output does not depend on the layer."""
        if self.input is None or self.output is None:
            return None
        trace = _trace(self.output)
        if not float(trace) > 0.0:
            return None
        per_example = 1.0 / (examples * probes)
        mean = None
        if self.input_mean is not None and self.bias is not None:
            mean = self.input_mean / self.bias.clamp_min(1e-300).unsqueeze(-1)
        return Sensitivity(
            input=self.input * per_example,
            output=self.output / trace,
            input_mean=mean,
            bias=None if self.bias is None else self.bias * per_example,
        )


def _quadratic(rows: Tensor, between: Tensor, full_limit: int) -> Tensor:
    """sum_e R^T K R: (g, k, k), or its diagonal (g, k); rows: (e, g, t, k)."""
    weighted = between @ rows
    k = rows.shape[-1]
    if k > full_limit:
        return (rows * weighted).sum((0, 2))
    groups = rows.shape[1]
    left = rows.transpose(0, 1).reshape(groups, -1, k)  # (g, e t, k)
    right = weighted.transpose(0, 1).reshape(groups, -1, k)
    return left.mT @ right


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    """Accumulated in float64, so that rounding does not grow with the number of batches."""
    return term.to(torch.float64) if total is None else total.add_(term)


def _trace(moment: Tensor) -> Tensor:
    if moment.dim() == 2:
        return moment.sum()
    return moment.diagonal(dim1=-2, dim2=-1).sum()
