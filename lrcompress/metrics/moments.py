"""What calibration leaves behind for one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments of a layer's inputs and of its output sensitivities.

    Per group g. A moment over too many features (a vocabulary) is held as its diagonal.
    Units: `input` per example, `output` per row, so that half the two-sided loss is the network's
    output divergence per example.
    """

    input: Tensor  # C = (1/examples) sum x x^T: (g, n, n) or diagonal (g, n)
    input_mean: Tensor  # mean over rows: (g, n)
    input_abs_mean: Tensor  # mean of |x| over rows: (g, n)
    rows: int  # tokens, patches or pixels seen
    examples: int
    output: Tensor | None = None  # G = (1/rows) sum g g^T: (g, m, m) or diagonal (g, m)

    @property
    def centred_input(self) -> Tensor:
        """C - (rows/examples) mu mu^T, the metric once the bias absorbs the mean error."""
        scale = self.rows / max(self.examples, 1)
        if self.input.dim() == 2:
            return self.input - scale * self.input_mean.square()
        return self.input - scale * self.input_mean.unsqueeze(-1) * self.input_mean.unsqueeze(-2)


MomentStore = Mapping[str, LayerMoments]
"""Moments by layer name; the one on disk reads a layer when it is asked for."""
