"""Rounding of a product's two factors, one after the other, each in the metric the other leaves.

W ~ left right, with moments C of the columns and G of the rows. A random rotation of the bond first
spreads the product's energy over the bond's features. Then the right factor is
V0 = (U^T G U)^-1 U^T G W, the best one for the left factor U, rounded in the metric (C, U^T G U);
the left factor is refitted to the rounded one, U0 = W C V^T (V C V^T)^-1, and rounded in the metric
(V C V^T, G).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.number_formats import CastFormat, Codes, GridFormat
from lrcompress.rounding import RoundingTask, rounded
from lrcompress.rounding.moment_product import times

FLOOR = 1e-9  # share of the bond moment's mean diagonal: a refit of a singular product stays finite


def rounded_product(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    left_format: GridFormat | CastFormat | None,
    right_format: GridFormat | CastFormat | None,
    input: Tensor | None,
    output: Tensor | None,
    generator: torch.Generator,
    *,
    right_by_column: bool = False,
) -> tuple[Codes | Tensor, Codes | Tensor]:
    """Return the factors of `weight` (m, n), each as codes, or as float64 values.

    A factor in a CastFormat is returned in values of its type, one without a format in float64.

    Args:
        left: (m, r).
        right: (r, n).
        left_format, right_format: None leaves the factor in float; it is still refitted.
        input, output: moments C and G as in a RoundingTask.
        generator: draws the rotation of the bond.
        right_by_column: the right factor is stored, and its codes returned, as (n, r).

    Raises:
        FitError: values that are not finite.
    """
    weight, left = weight.double(), left.double()
    if isinstance(left_format, GridFormat) or isinstance(right_format, GridFormat):
        left = left @ _rotation(left.shape[1], generator)
    moment = left.mT @ times(output, left)  # U^T G U: (r, r)
    target = _solved(moment, left.mT @ times(output, weight))  # (r, n)
    first, right_value = _rounded(target, right_format, input, moment, by_column=right_by_column)
    weighted = times(input, right_value.mT)  # C V^T: (n, r)
    bond = right_value @ weighted  # V C V^T: (r, r)
    target = _solved(bond, (weight @ weighted).mT).mT  # (m, r)
    return _rounded(target, left_format, bond, output, by_column=False)[0], first


def _rounded(
    value: Tensor,
    format: GridFormat | CastFormat | None,
    input: Tensor | None,
    output: Tensor | None,
    *,
    by_column: bool,
) -> tuple[Codes | Tensor, Tensor]:
    """Return what is stored of a factor, and its values in float64 (rows, columns)."""
    if by_column:
        stored, transposed = _rounded(value.mT, format, output, input, by_column=False)
        return stored, transposed.mT
    if isinstance(format, GridFormat):
        codes = rounded(RoundingTask(value, format, input, output))
        return codes, codes.dequantised().double()
    if isinstance(format, CastFormat):
        value = value.to(format.dtype).double()
    return value, value


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    """Draw a random orthogonal matrix."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=generator)
    orthogonal: Tensor = torch.linalg.qr(drawn)[0]
    return orthogonal


def _solved(moment: Tensor, right_side: Tensor) -> Tensor:
    """Solve moment X = right_side for a symmetric moment that may be singular."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh((moment + moment.mT) / 2)
    kept = values > FLOOR * values.mean().clamp_min(0)
    inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0.0)
    return vectors @ (inverse.unsqueeze(1) * (vectors.mT @ right_side))
