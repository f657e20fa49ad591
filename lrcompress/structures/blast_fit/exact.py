"""Weights that are BLAST matrices: out of the local minima that alternating fits end in.

There most blocks are right, and what is wrong sits in a few rows and columns of blocks. Drawing
those anew and going on finds the exact factors within a few attempts, where a whole fresh start
does so one time in three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.blast_fit.residual import block_losses
from lrcompress.structures.blast_fit.spectral_start import drawn
from lrcompress.structures.blast_fit.sweeps import Sweep, alternate, until_flat

_ATTEMPTS = 24
_FAILURES = 8  # in a row: it was no BLAST matrix after all
_SWEEPS = 40  # of an attempt
_FINISH = 200  # sweeps down to rounding
_FOUND = 1e-14  # of the weight's square: an error of 1e-7
_SUSPECT = 2.0  # times the mean loss of a row or column of blocks


def looks_exact(loss: Tensor, spectral_loss: Tensor, kept: float) -> Tensor:
    """Whether float32 sweeps ended nearer than other weights do: (batch,).

    loss, spectral_loss: of the fit and of the truncated SVD of its rank, in units of the weight's
    square; kept: parameters, as a share of the weight's. A trained weight at half its parameters
    has .65 to .9 of the SVD's error, at 85 % .26 to .8; a BLAST matrix in a local minimum up to .4
    at any rank.
    """
    error = 0.6 * max(0.0, 1 - kept)
    return (loss < error**2 * spectral_loss) | (loss < 1e-6)


def recover(weight: Tensor, factors: BlastFactors, generator: torch.Generator) -> Sweep:
    """The exact factors of one weight (1, b_out p, b_in q) of norm 1, if they are found.

    In float64: the loss is the difference of two numbers near 1, and its root is the error.
    """
    best = until_flat(alternate(weight, factors), _SWEEPS, worthwhile=1e-2)
    failures = 0
    for _ in range(_ATTEMPTS):
        if failures == _FAILURES or float(best.loss) < 1e-6:
            break
        tried = alternate(weight, _redrawn(weight, best.factors, failures, generator))
        found = until_flat(tried, _SWEEPS, worthwhile=1e-2)
        failures = 0 if float(found.loss) < 0.9 * float(best.loss) else failures + 1
        best = found if float(found.loss) < float(best.loss) else best
    if float(best.loss) < _FOUND:
        return best
    return until_flat(alternate(weight, best.factors), _FINISH, worthwhile=1e-2)


def _redrawn(
    weight: Tensor, factors: BlastFactors, failures: int, generator: torch.Generator
) -> BlastFactors:
    """Random s in some rows of blocks (their U follows from it), random s and V in some columns.

    In those that have more than their share of the loss; after failures in as many more, by chance.
    """
    losses = block_losses(weight, factors)[0]  # (b_out, b_in)
    b_out, b_in, rank = factors.diag.shape[1:]
    lines = torch.cat([losses.sum(1) * b_out, losses.sum(0) * b_in]).cpu()  # (b_out + b_in,)
    suspected = lines > _SUSPECT * losses.sum().cpu()
    more = min(max(failures, int(not suspected.any())), int((lines > 0).sum()))
    if more:
        suspected[torch.multinomial(lines, more, generator=generator)] = True
    diag, right = factors.diag.clone(), factors.right.clone()
    size, width = diag.square().mean((0, 1, 2)).sqrt(), right.square().mean((0, 1, 2)).sqrt()
    for line in suspected.nonzero().flatten().tolist():
        if line < b_out:
            diag[0, line] = drawn((b_in, rank), diag, generator) * size
        else:
            diag[0, :, line - b_out] = drawn((b_out, rank), diag, generator) * size
            shape = tuple(right.shape[2:])  # (q, r)
            right[0, line - b_out] = drawn(shape, right, generator) * width
    return BlastFactors(factors.left, diag, right)
