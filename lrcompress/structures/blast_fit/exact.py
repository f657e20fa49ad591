"""Exact recovery of weights that are BLAST matrices, from local minima of alternating fits.

In such a minimum most blocks are right; the error is in a few rows and columns of blocks. Redrawing
these and continuing finds the exact factors within a few attempts. A completely new start succeeds
one time in three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors, block_losses
from lrcompress.structures.blast_fit.spectral_start import drawn
from lrcompress.structures.blast_fit.sweeps import Sweep, alternate, until_flat

_ATTEMPTS = 24
_FAILURES = 8  # in a row, after which the weight is taken not to be a BLAST matrix
_SWEEPS = 40  # per attempt
_FINISH = 200  # final sweeps, down to rounding
_FOUND = 1e-14  # relative to the weight's square: an error of 1e-7
_SUSPECT = 2.0  # times the mean loss of a row or column of blocks


def looks_exact(loss: Tensor, spectral_loss: Tensor, kept: float) -> Tensor:
    """Whether the loss of float32 sweeps is so low that the weight looks like BLAST: (batch,).

    loss, spectral_loss: those of the fit and of the truncated SVD of its rank, in units of the
    weight's square. kept: parameters, as a share of the weight's. The error of a trained weight is
    .65 to .9 of the SVD's at half its parameters and .26 to .8 at 85 %. That of a BLAST matrix in a
    local minimum is up to .4 at any rank.
    """
    error = 0.6 * max(0.0, 1 - kept)
    return (loss < error**2 * spectral_loss) | (loss < 1e-6)


def recover(weight: Tensor, factors: BlastFactors, generator: torch.Generator) -> Sweep:
    """Search for the exact factors of one weight (1, b_out p, b_in q) of norm 1.

    Works in float64: the loss is the difference of two numbers near 1, and its root is the error.
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
    """Redraw s in some rows of blocks (their U follows), and s and V in some columns.

    These are the rows and columns with more than their share of the loss. After failures, as many
    more are chosen at random.
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
