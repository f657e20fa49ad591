"""Statistics of one layer that calibration collects: second moments and sensitivities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Kronecker factors of the layer's Gauss-Newton matrix, H = input (x) output.

    They come from the gradients g_t of an example's rows, for one probe of the output's curvature:
    input = E[J^T J] with J = sum_t g_t x_t^T, output = E[sum_t g_t g_t^T] / trace. `cross` and
    `bias` extend the input factor by the layer's bias, whose gradient is j = sum_t g_t: E[J^T j]
    and E[j^T j]. They are None for an embedding.
    """

    input: Tensor  # (g, n, n) or diagonal (g, n); per example
    output: Tensor  # (g, m, m) or diagonal (g, m); trace 1 in each group
    cross: Tensor | None = None  # (g, n)
    bias: Tensor | None = None  # (g,)


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments of a layer's inputs, and its output sensitivity, per group g.

    A moment over too many features (a vocabulary) is stored as its diagonal.
    """

    input: Tensor  # C = (1/examples) sum x x^T: (g, n, n) or diagonal (g, n)
    input_mean: Tensor  # mean over rows: (g, n)
    input_abs_mean: Tensor  # mean of |x| over rows: (g, n)
    rows: int  # tokens, patches or pixels seen
    examples: int
    sensitivity: Sensitivity | None = None

    @property
    def centred_input(self) -> Tensor:
        """C - (rows/examples) mu mu^T: the second moment if the bias absorbs the mean error."""
        return without_mean(self.input, self.input_mean, self.rows / max(self.examples, 1))


def without_mean(moment: Tensor, mean: Tensor, weight: float | Tensor) -> Tensor:
    """Return M - weight mean mean^T, full or diagonal as the moment; weight: a number or (g,)."""
    scale = torch.as_tensor(weight, dtype=moment.dtype, device=moment.device).reshape(-1, 1)
    if moment.dim() == 2:
        return moment - scale * mean.square()
    return moment - scale.unsqueeze(-1) * mean.unsqueeze(-1) * mean.unsqueeze(-2)


# Moments by layer name; a store on disk reads those of a layer on access.
MomentStore = Mapping[str, LayerMoments]
