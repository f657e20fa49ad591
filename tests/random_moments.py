"""Moments of made-up inputs and gradients, through the code that sums real ones."""

from __future__ import annotations

import torch

from lrcompress.layers import LayerSpec
from lrcompress.metrics import LayerMoments
from lrcompress.profiling.gauss_newton_factors import GaussNewtonFactors
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT, InputMoment


def random_moments(
    spec: LayerSpec,
    seed: int = 0,
    *,
    examples: int = 40,
    positions: int = 3,
    full_limit: int = FULL_MOMENT_LIMIT,
) -> LayerMoments:
    """Correlated inputs with a mean, and gradients; few examples make moments rank-deficient."""
    generator = torch.Generator().manual_seed(seed)

    def rows(features: int) -> torch.Tensor:
        mix = torch.randn(features, features, generator=generator) / features**0.5
        free = torch.randn(examples, positions, spec.groups, features, generator=generator)
        return free @ mix + 0.3 * torch.randn(features, generator=generator)

    x, gradient = rows(spec.in_features), rows(spec.out_features)
    moment, joint = InputMoment(), GaussNewtonFactors()
    moment.add(x.flatten(0, 1))
    joint.add(x, gradient, full_limit=full_limit)
    second = moment.seconds.whole()
    assert second is not None
    assert moment.first is not None
    assert moment.absolute is not None
    full = spec.in_features <= full_limit
    return LayerMoments(
        input=(second if full else second.diagonal(dim1=-2, dim2=-1)) / examples,
        input_mean=moment.first / moment.rows,
        input_abs_mean=moment.absolute / moment.rows,
        rows=moment.rows,
        examples=examples,
        sensitivity=joint.finish(examples, probes=1),
    )
