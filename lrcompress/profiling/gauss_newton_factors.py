"""Kronecker factors of a layer's Gauss-Newton matrix, from whole-example gradients.

K-FAC's factors (Martens and Grosse 2015) treat the tokens of an example as independent. They are
not: a weight change has similar effects on all tokens of a sentence, and pooling and attention add
these effects up. Here the gradient of a whole example is used, J = sum_t g_t x_t^T, and the input
factor is E[J^T J] = E[sum_tt' x_t (g_t . g_t') x_t'^T]. The output factor stays sum_t g_t g_t^T:
E[J J^T] concentrates on few directions and was worse in all experiments
(benchmarks/results/quality.json).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrcompress.metrics import Sensitivity
from lrcompress.profiling.second_moment import SecondMoment, trace


@dataclass
class GaussNewtonFactors:
    """Sums over examples and probes, for one use of one weight."""

    inputs: SecondMoment = field(default_factory=SecondMoment)  # sum J^T J
    outputs: SecondMoment = field(default_factory=SecondMoment)  # sum g g^T
    cross: Tensor | None = None  # sum J^T j: (g, n)
    bias: Tensor | None = None  # sum j^T j: (g,)

    def add(self, x: Tensor, gradient: Tensor, *, full_limit: int) -> None:
        """Add a batch; the gradient is 0 on padding.

        x: (examples, positions, g, n), gradient: (examples, positions, g, m).
        """
        x = x.detach().to(torch.float32).transpose(1, 2)  # (e, g, t, n)
        gradient = gradient.detach().to(torch.float32).transpose(1, 2)  # (e, g, t, m)
        positions, n = x.shape[-2:]
        m = gradient.shape[-1]
        if positions <= min(m, n):  # J^T J = X^T (Gr Gr^T) X, without forming J
            between = gradient @ gradient.mT  # (e, g, t, t)
            self.inputs.add(x, between @ x, full_limit)
        else:
            whole = gradient.mT @ x  # (e, g, m, n)
            self.inputs.add(whole, whole, full_limit)
        self.outputs.add(gradient, gradient, full_limit)
        j = gradient.sum(-2)  # (e, g, m)
        # J^T j = sum_t x_t (g_t . j)
        self.cross = _plus(self.cross, (x * (gradient @ j.unsqueeze(-1))).sum((0, 2)))
        self.bias = _plus(self.bias, j.square().sum((0, 2)))

    def add_tokens(self, tokens: Tensor, gradient: Tensor, vocabulary: int) -> None:
        """Add a batch of an embedding lookup.

        tokens: (examples, positions), gradient: (examples, positions, 1, m).
        """
        gradient = gradient.detach().to(torch.float32).squeeze(2)
        examples = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        keys, where = torch.unique(examples * vocabulary + tokens, return_inverse=True)
        columns = gradient.new_zeros(len(keys), gradient.shape[-1])  # nonzero columns of J
        columns.index_add_(0, where.flatten(), gradient.flatten(0, 1))
        diagonal = gradient.new_zeros(vocabulary)
        diagonal.index_add_(0, keys % vocabulary, columns.square().sum(1))
        self.inputs.add_diagonal(diagonal[None])
        flat = gradient.flatten(0, 1)[None, None]  # (1, 1, rows, m)
        self.outputs.add(flat, flat, gradient.shape[-1])

    def finish(self, examples: int, probes: int) -> Sensitivity | None:
        """Return the sensitivity; None where the output does not depend on the layer."""
        inputs, outputs = self.inputs.whole(), self.outputs.whole()
        if inputs is None or outputs is None:
            return None
        traces = trace(outputs)  # (g,)
        if not bool((traces > 0).any()):
            return None
        traces = traces.clamp_min(1e-300).reshape(-1, *(1,) * (outputs.dim() - 1))
        per_example = 1.0 / (examples * probes)
        return Sensitivity(
            input=inputs * per_example,
            output=outputs / traces,
            cross=None if self.cross is None else self.cross * per_example,
            bias=None if self.bias is None else self.bias * per_example,
        )


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    """Accumulate in float64, so that rounding does not grow with the number of batches."""
    return term.to(torch.float64) if total is None else total.add_(term)
