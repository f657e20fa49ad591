"""Rank measures of a spectrum: the number of directions that a weight uses."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

import torch
from torch import Tensor

from lrcompress.structures.large_svd import gram_by_blocks, is_large

NUMERICAL_RANK_THRESHOLD = 1e-3  # share of the largest singular value


@dataclass(frozen=True)
class RankMeasures:
    """Rank measures, computed from the singular values s_1 >= s_2 >= ... of one matrix."""

    stable_rank: float  # ||W||_F^2 / s_1^2
    effective_rank: float  # exp of the entropy of s / sum s (Roy and Vetterli 2007)
    numerical_rank: int  # #{s_i > 1e-3 s_1}
    e90: int  # directions that hold 90 % of the energy
    e99: int
    above_noise: int  # singular values beyond the Marchenko-Pastur edge


def measure(singular_values: Tensor, out_features: int, in_features: int) -> RankMeasures:
    """Return the rank measures of a descending spectrum. For a zero weight all are 0.

    The noise edge is that of an i.i.d. matrix with the same median singular value (Gavish and
    Donoho 2014). Singular values of pure noise stay below it.
    """
    s = singular_values.to(torch.float64)
    energy = s.square()
    total = float(energy.sum())
    if total == 0.0:
        return RankMeasures(0.0, 0.0, 0, 0, 0, 0)
    share = s / s.sum()
    entropy = float(-(share * share.clamp_min(1e-300).log()).sum())
    cumulative = energy.cumsum(0) / total
    return RankMeasures(
        stable_rank=total / float(energy[0]),
        effective_rank=exp(entropy),
        numerical_rank=int((s > NUMERICAL_RANK_THRESHOLD * s[0]).sum()),
        e90=int((cumulative < 0.90).sum()) + 1,
        e99=int((cumulative < 0.99).sum()) + 1,
        above_noise=int((s > marchenko_pastur_edge(s, out_features, in_features)).sum()),
    )


def marchenko_pastur_edge(singular_values: Tensor, out_features: int, in_features: int) -> float:
    """Largest singular value of noise: sigma (sqrt m + sqrt n), with sigma from the median."""
    short, long = sorted((out_features, in_features))
    aspect = short / long
    # torch's median of an even count is the lower value, which puts the edge 1-2 % too low
    median = float(singular_values.to(torch.float64).quantile(0.5))
    sigma = median / sqrt(long * _median_of_marchenko_pastur(aspect))
    return sigma * (sqrt(short) + sqrt(long))


def _median_of_marchenko_pastur(aspect: float, points: int = 4096) -> float:
    """Median of the Marchenko-Pastur law with ratio `aspect` <= 1, by quadrature."""
    low, high = (1 - sqrt(aspect)) ** 2, (1 + sqrt(aspect)) ** 2
    # The substitution x = mid - half cos(angle) removes the square-root behaviour at both ends
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * (torch.pi / points)
    half, mid = (high - low) / 2, (high + low) / 2
    x = mid - half * angle.cos()
    mass = angle.sin().square() / x.clamp_min(1e-12)
    cumulative = mass.cumsum(0) / mass.sum()
    return float(x[int((cumulative < 0.5).sum())])


def singular_values(weight: Tensor) -> Tensor:
    """Return descending singular values in float64: (groups, m, n) -> (groups, k).

    For a large weight they come from the Gram matrix of its shorter side, summed block by block to
    avoid a float64 copy. They are then accurate to 1e-8 of the largest, enough for float32 weights.
    """
    if not is_large(weight):
        found: Tensor = torch.linalg.svdvals(weight.to(torch.float64))
        return found
    energies: Tensor = torch.linalg.eigvalsh(gram_by_blocks(weight))
    return energies.clamp_min(0).sqrt().flip(-1)


def gram_of_shorter_side(matrix: Tensor) -> Tensor:
    """Return A A^T or A^T A, the smaller one: (..., k, k). Its eigenvalues are the s_i^2 of A."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    return matrix @ matrix.mT if wide else matrix.mT @ matrix


def loss_curve(singular_values: Tensor) -> Tensor:
    """Return the loss of keeping k directions, k = 0..len: 1/2 sum_{i>k} s_i^2."""
    energy = singular_values.to(torch.float64).square()
    tails = energy.flip(0).cumsum(0).flip(0)
    return 0.5 * torch.cat([tails, tails.new_zeros(1)])
