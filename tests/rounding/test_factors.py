"""The factors of a product are rounded in the metric that the other factor leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrcompress.number_formats import CastFormat, Codes, Fp16, GridFormat, Int4, Int8
from lrcompress.rounding import RoundingTask, product_loss, rounded
from lrcompress.rounding.factors import rounded_product
from tests.rounding.reference import random_metric, seeded

ROWS, COLUMNS, RANK = 40, 56, 16


class Product:
    """A weight near rank RANK, its truncated factors, and moments."""

    def __init__(self, seed: int) -> None:
        generator = seeded(seed)
        self.input, self.output = (
            random_metric(COLUMNS, generator),
            random_metric(ROWS, generator),
        )
        drawn = torch.randn(ROWS, COLUMNS, dtype=torch.float64, generator=generator)
        left, values, right = torch.linalg.svd(drawn, full_matrices=False)
        self.weight = left * (values * 0.9 ** torch.arange(ROWS)) @ right
        u, s, v = torch.linalg.svd(self.weight, full_matrices=False)
        self.left, self.right = u[:, :RANK] * s[:RANK], v[:RANK]

    def rounded(
        self,
        left: GridFormat | CastFormat | None,
        right: GridFormat | CastFormat | None,
        *,
        right_by_column: bool = False,
    ) -> tuple[Codes | Tensor, Codes | Tensor]:
        return rounded_product(
            self.weight,
            self.left,
            self.right,
            left,
            right,
            self.input,
            self.output,
            seeded(0),
            right_by_column=right_by_column,
        )

    def loss(self, left: Codes | Tensor, right: Codes | Tensor) -> float:
        return product_loss(self.weight, values(left) @ values(right), self.input, self.output)


def values(factor: Codes | Tensor) -> Tensor:
    return factor.dequantised().double() if isinstance(factor, Codes) else factor


def test_rounding_in_the_metric_beats_rounding_each_factor_alone() -> None:
    format = Int4(16)
    ours = theirs = 0.0
    for seed in range(5):
        product = Product(seed)
        ours += product.loss(*product.rounded(format, format))
        left, right = (rounded(RoundingTask(x, format)) for x in (product.left, product.right))
        theirs += product.loss(left, right)
    assert ours < theirs


@pytest.mark.parametrize("format", [None, Fp16()], ids=str)
def test_a_factor_in_float_is_refitted_to_the_rounded_one(format: CastFormat | None) -> None:
    product = Product(0)
    left, right = product.rounded(format, Int4(16))
    assert isinstance(left, Tensor)
    if format is not None:
        assert torch.equal(left.half().double(), left)
    weighted = product.input @ values(right).mT
    best = torch.linalg.solve(values(right) @ weighted, (product.weight @ weighted).mT).mT
    # float16's relative rounding; the float64 factor agrees to 1e-9 of the bond's condition
    tolerance = 2**-11 if format is not None else 1e-6
    torch.testing.assert_close(left, best, rtol=tolerance, atol=tolerance)


def test_a_refit_without_rounding_is_no_worse_than_the_start() -> None:
    product = Product(1)
    assert product.loss(*product.rounded(None, None)) <= product.loss(product.left, product.right)


def test_eight_bits_cost_little() -> None:
    product = Product(2)
    free = product.loss(*product.rounded(None, None))
    assert product.loss(*product.rounded(Int8(16), Int8(16))) < 1.05 * free


def test_a_right_factor_stored_by_column_has_its_blocks_along_the_bond() -> None:
    product = Product(3)
    left, right = product.rounded(Int4(16), Int4(16), right_by_column=True)
    assert isinstance(right, Codes)
    assert right.codes.shape == (COLUMNS, RANK)
    assert right.grid.scales.shape == (COLUMNS, 1)
    plain = product.loss(product.left, torch.zeros_like(product.right))
    assert product.loss(left, values(right).mT) < 0.2 * plain


def test_a_product_of_less_than_full_rank_stays_finite() -> None:
    product = Product(4)
    product.left[:, 3] = 0
    left, right = product.rounded(Int4(16), Int4(16))
    assert bool(values(left).isfinite().all())
    assert bool(values(right).isfinite().all())


def test_the_generator_determines_the_codes() -> None:
    product = Product(5)
    first, second = (product.rounded(Int4(16), Int4(16)) for _ in range(2))
    assert torch.equal(values(first[0]), values(second[0]))
    assert torch.equal(values(first[1]), values(second[1]))
