"""The plain fit of BLAST weights, which minimises ||W - W_hat||_F."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.exact import looks_exact, recover
from lrcompress.structures.blast_fit.factors import BlastFactors, block_losses
from lrcompress.structures.blast_fit.spectral_start import extended, spectral_loss, spectral_start
from lrcompress.structures.blast_fit.sweeps import Sweep, alternate, chosen, until_flat
from lrcompress.structures.blast_fit.unit_norm import norms, padded

_WORTHWHILE = 1e-4  # share of the loss per five sweeps; trained weights gain 100 times that at 40
_SMALL = 64 * 64  # scalars of a weight up to which float64 costs nothing extra


@torch.no_grad()
def fit_plain(
    weight: Tensor,
    *,
    rank: int,
    blocks_out: int,
    blocks_in: int,
    sweeps: int = 40,
    start: BlastFactors | None = None,
    generator: torch.Generator | None = None,
) -> BlastFactors:
    """Fit BLAST factors to weights (batch, m, n) of one shape, in their dtype, on their device.

    The work is done in float32, whose rounding is far below the error of a trained weight. A weight
    that turns out to be a BLAST matrix is fitted in float64, down to rounding. `start`: factors of
    this rank or less; the result is no further from the weight than they are. `generator`: on the
    CPU; without one the fit is deterministic.

    Raises:
        FitError: the weight is not finite.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    small = weight[0].numel() <= _SMALL
    norm = norms(weight)  # (batch, 1, 1), at least float32
    unit = padded(weight, norm, blocks_out, blocks_in, torch.float64 if small else torch.float32)
    if start is None:
        initial = spectral_start(unit, blocks_out, blocks_in, rank, generator)
        initial_loss = spectral_loss(unit, initial)
    else:
        initial = extended(unit, start.scaled(1 / norm).to(unit), rank, generator)
        initial_loss = block_losses(unit, initial).sum((1, 2))
    kept = _kept(initial)
    sweeping = alternate(unit, initial)
    if start is None:
        del initial  # frees memory during the sweeps: it is half as large as the weight
    found = until_flat(sweeping, sweeps, worthwhile=_WORTHWHILE)
    if start is not None:
        found = chosen(found.loss < initial_loss, found, Sweep(initial, initial_loss))
    for index in looks_exact(found.loss, initial_loss, kept).nonzero().flatten().tolist():
        one = slice(index, index + 1)
        wide = padded(weight[one], norm[one], blocks_out, blocks_in, torch.float64)
        exact = recover(wide, found.factors.of_weights(one).to(wide), generator)
        this = torch.arange(len(weight), device=weight.device) == index
        found = chosen(this, exact, found)  # float32 cannot tell their losses apart
    return found.factors.balanced().to(norm).scaled(norm).to(weight)


def _kept(factors: BlastFactors) -> float:
    """Number of parameters, as a share of the (padded) weight's."""
    numbers = sum(part[0].numel() for part in factors)
    dense = factors.left.shape[1:3].numel() * factors.right.shape[1:3].numel()
    return numbers / dense
