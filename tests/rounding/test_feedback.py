"""The blocked forms of feedback give the codes of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrcompress.number_formats import Int4, Int8, UInt4
from lrcompress.rounding import PreparedMetric, RoundingTask, feedback, rounded, wavefront
from lrcompress.rounding.cells import Cells
from lrcompress.rounding.column_feedback import column_feedback
from lrcompress.rounding.wavefront import BLOCKS, STEP
from tests.rounding.reference import random_metric, reference_levels, seeded

# Around one tile, one block and two blocks of the second size; wide, tall, and single rows
SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (5, 8),
    (STEP, STEP),
    (STEP + 1, 2 * STEP + 3),
    (2 * BLOCKS[0] + 5, 7),
    (STEP - 1, 2 * BLOCKS[0] + 9),
    (BLOCKS[0] + 3, BLOCKS[0] - 1),
]


def cells(rows: int, columns: int, seed: int, *, zero_points: bool) -> Cells:
    """Weights of which some lie outside the range of the levels; scales of both signs."""
    generator = seeded(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    scale = 0.1 + 0.3 * torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    scale[:, ::3] *= -1
    if not zero_points:
        return Cells(weight, scale, -8.0, 7.0)
    zero = torch.randint(0, 16, (rows, columns), generator=generator).double()
    return Cells(weight, scale, -zero, 15 - zero)


def factors(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    metric = PreparedMetric.of(
        random_metric(columns, generator), random_metric(rows, generator), dtype=torch.float64
    )
    sides = metric.input, metric.output
    uppers = [side.upper for side in sides if side is not None]
    assert uppers[0] is not None
    assert uppers[1] is not None
    return uppers[0], uppers[1]


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_wavefront_gives_the_codes_of_the_formula(
    rows: int, columns: int, *, zero_points: bool
) -> None:
    drawn = cells(rows, columns, seed=rows, zero_points=zero_points)
    upper_c, upper_g = factors(rows, columns, seed=columns)
    found = wavefront.wavefront(drawn, upper_c, upper_g)
    assert torch.equal(found, reference_levels(drawn, upper_c, upper_g))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 999), st.sampled_from([(8,), (8, 16)])
)
def test_wavefront_with_small_blocks_gives_the_codes_of_the_formula(
    rows: int, columns: int, seed: int, blocks: tuple[int, ...]
) -> None:
    drawn = cells(rows, columns, seed, zero_points=False)
    upper_c, upper_g = factors(rows, columns, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wavefront, "STEP", 4)
        patch.setattr(wavefront, "REACH", 7)
        patch.setattr(wavefront, "BLOCKS", blocks)
        found = wavefront.wavefront(drawn, upper_c, upper_g)
    assert torch.equal(found, reference_levels(drawn, upper_c, upper_g))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_column_feedback_is_two_sided_feedback_without_g(
    rows: int, columns: int, *, zero_points: bool
) -> None:
    drawn = cells(rows, columns, seed=rows, zero_points=zero_points)
    upper_c, _ = factors(rows, columns, seed=columns)
    identity = torch.eye(rows, dtype=torch.float64)
    found = column_feedback(drawn, upper_c)
    assert torch.equal(found, reference_levels(drawn, upper_c, identity))


def test_independent_rows_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = seeded(0)
    weight = torch.randn(37, 24, dtype=torch.float64, generator=generator)
    frequency = torch.rand(37, dtype=torch.float64, generator=generator)
    for format in (Int8(16), Int4(16), UInt4(16)):
        task = RoundingTask(weight, format, random_metric(24, generator), frequency)
        whole = rounded(task).codes
        monkeypatch.setattr(feedback, "CELLS_AT_ONCE", 24 * 5)
        assert torch.equal(rounded(task).codes, whole)
        monkeypatch.undo()


def test_output_feedback_alone_is_input_feedback_of_the_transpose() -> None:
    generator = seeded(1)
    weight = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    moment = random_metric(30, generator)
    drawn = cells(30, 30, 2, zero_points=False)
    grid = Int8(32).grid(weight)
    along = PreparedMetric.of(None, moment, dtype=torch.float64)
    side = along.output
    assert side is not None
    assert side.upper is not None
    found = feedback.with_feedback(weight, grid, along, narrow=False)
    scale = grid.scales.double().expand(30, 30)
    ordered = Cells(weight[side.order], scale[side.order], drawn.low * 16, 127.0)
    expected = torch.empty_like(weight)
    expected[side.order] = reference_levels(ordered, torch.eye(30, dtype=torch.float64), side.upper)
    assert torch.equal(found.codes.double() - 128, expected)
