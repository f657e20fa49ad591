"""Claims about every method, and about the metric that feedback works in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrcompress.errors import FitError
from lrcompress.number_formats import (
    GridFormat,
    Int2,
    Int4,
    Int8,
    Int8Dynamic,
    UInt2,
    UInt4,
)
from lrcompress.rounding import ROUNDINGS, PreparedMetric, RoundingTask, rounded, rounding_loss
from tests.rounding.reference import random_metric, seeded

FORMATS: list[GridFormat] = [Int8(16), Int8Dynamic(), Int4(16), UInt4(16), Int2(16), UInt2(16)]
SHAPES = [(1, 1), (1, 33), (33, 1), (20, 48), (48, 20)]


def drawn_task(
    rows: int, columns: int, format: GridFormat, seed: int, *, rank: int | None = None
) -> RoundingTask:
    generator = seeded(seed)
    return RoundingTask(
        torch.randn(rows, columns, dtype=torch.float64, generator=generator),
        format,
        random_metric(columns, generator, rank),
        random_metric(rows, generator, rank),
    )


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", ROUNDINGS)
def test_codes_are_in_range(method: str, format: GridFormat) -> None:
    for rows, columns in SHAPES:
        codes = rounded(drawn_task(rows, columns, format, 0), method).codes
        assert codes.shape == (rows, columns)
        assert codes.dtype == torch.uint8
        assert int(codes.min()) >= (1 if format.narrow else 0)
        assert int(codes.max()) < 1 << format.bits


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", ROUNDINGS)
def test_scales_are_exact_in_float16(method: str, format: GridFormat) -> None:
    scales = rounded(drawn_task(20, 48, format, 0), method).grid.scales
    assert torch.equal(scales.half().float(), scales)
    assert bool((scales != 0).all())


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_each_kind_of_feedback_lowers_the_mean_loss(format: GridFormat) -> None:
    tasks = [drawn_task(32, 48, format, seed) for seed in range(8)]
    two_sided, one_sided, nearest = (
        sum(rounding_loss(task, rounded(task, method)) for task in tasks)
        for method in ("two-sided", "gptq", "nearest")
    )
    assert two_sided < one_sided < nearest


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_loss_is_a_sum_over_the_triangular_factors(rows: int, columns: int, seed: int) -> None:
    task = drawn_task(rows, columns, Int4(16), seed)
    codes = rounded(task)
    metric = PreparedMetric.of(task.input, task.output, dtype=torch.float64, damping=0.0)
    c, g = metric.input, metric.output
    assert c is not None
    assert c.upper is not None
    assert g is not None
    assert g.upper is not None
    error = (task.weight - codes.dequantised())[g.order][:, c.order]
    residual = g.upper.mT @ error @ c.upper
    summed = 0.5 * float((g.conditional.unsqueeze(1) * c.conditional * residual.square()).sum())
    # float64's 2e-16 times a condition of at most 1e4 a side
    assert summed == pytest.approx(rounding_loss(task, codes), rel=1e-8)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_diagonal_moments_need_no_feedback(format: GridFormat) -> None:
    generator = seeded(3)
    weight = torch.randn(20, 48, dtype=torch.float64, generator=generator)
    input, output = torch.rand(48, generator=generator), torch.rand(20, generator=generator)
    expected = format.grid(weight, input).nearest(weight)
    for moments in ((input, output), (input.diag(), output.diag())):
        metric = PreparedMetric.of(*moments, damping=0.0)
        found = rounded(RoundingTask(weight, format, *moments), metric=metric)
        assert torch.equal(found.codes, expected)


def test_identity_moments_equal_moments_of_ones() -> None:
    weight = torch.randn(20, 48, generator=seeded(4))
    plain = rounded(RoundingTask(weight, Int4(16)))
    ones = rounded(RoundingTask(weight, Int4(16), torch.ones(48), torch.ones(20)))
    assert torch.equal(plain.codes, ones.codes)
    # the refit's sums are the same up to float32's rounding, then rounded to float16
    torch.testing.assert_close(plain.grid.scales, ones.grid.scales, rtol=2**-10, atol=0.0)


def test_a_dead_column_is_rounded_to_nearest() -> None:
    task = drawn_task(20, 48, Int8(16), 5)
    assert task.input is not None
    task.input[7] = task.input[:, 7] = 0
    codes = rounded(task)
    assert torch.equal(codes.codes[:, 7], codes.grid.nearest(task.weight)[:, 7])


def test_a_dead_row_is_rounded_to_nearest() -> None:
    task = drawn_task(20, 48, Int8(16), 5)
    assert task.output is not None
    task.output[7] = task.output[:, 7] = 0
    codes = rounded(task)
    assert torch.equal(codes.codes[7], codes.grid.nearest(task.weight)[7])


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_singular_moments_are_no_obstacle(format: GridFormat) -> None:
    task = drawn_task(32, 48, format, 6, rank=5)
    assert rounding_loss(task, rounded(task)) < rounding_loss(task, rounded(task, "nearest"))


@pytest.mark.parametrize("method", ROUNDINGS)
def test_moments_of_zeros_are_no_obstacle(method: str) -> None:
    weight = torch.randn(6, 9, generator=seeded(0))
    codes = rounded(RoundingTask(weight, Int4(16), torch.zeros(9, 9), torch.zeros(6, 6)), method)
    assert torch.equal(codes.codes, codes.grid.nearest(weight))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("method", ROUNDINGS)
def test_a_zero_matrix_stays_zero(method: str, format: GridFormat) -> None:
    task = RoundingTask(torch.zeros(4, 32), format, random_metric(32, seeded(0)))
    codes = rounded(task, method)
    assert bool((codes.dequantised() == 0).all())
    assert rounding_loss(task, codes) == 0.0


def test_a_prepared_metric_serves_several_formats() -> None:
    task = drawn_task(20, 48, Int4(16), 7)
    metric = PreparedMetric.of(task.input, task.output)
    for format in FORMATS:
        own = RoundingTask(task.weight, format, task.input, task.output)
        assert torch.equal(rounded(own, metric=metric).codes, rounded(own).codes)


@pytest.mark.parametrize("method", ROUNDINGS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(method: str, bad: float) -> None:
    weight = torch.zeros(4, 32)
    weight[1, 2] = bad
    with pytest.raises(FitError, match="weight holds NaN or infinity"):
        rounded(RoundingTask(weight, Int4()), method)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [(0, 0, torch.nan, "diagonal"), (0, 0, -1.0, "diagonal"), (1, 0, torch.nan, "NaN")],
)
def test_moments_that_are_no_moments_are_named(
    row: int, column: int, value: float, message: str
) -> None:
    moment = torch.eye(32)
    moment[row, column] = moment[column, row] = value
    with pytest.raises(FitError, match=message):
        rounded(RoundingTask(torch.zeros(4, 32), Int4(), moment))


def test_an_indefinite_moment_is_named() -> None:
    moment = torch.ones(32, 32) * 9 - 8 * torch.eye(32)
    moment[0, 1] = moment[1, 0] = -30.0
    with pytest.raises(FitError, match="not positive semi-definite"):
        rounded(RoundingTask(torch.zeros(4, 32), Int4(), moment))


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(FitError, match=r"input moment has shape \(4, 4\)"):
        rounded(RoundingTask(torch.zeros(4, 32), Int4(), torch.eye(4)))
    with pytest.raises(FitError, match=r"output moment has shape \(32,\)"):
        rounded(RoundingTask(torch.zeros(4, 32), Int4(), None, torch.ones(32)))


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(FitError, match="two-sided, gptq, nearest"):
        rounded(RoundingTask(torch.zeros(4, 32), Int4()), "best")
