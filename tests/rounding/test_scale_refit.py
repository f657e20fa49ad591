"""The refit of scales is a least-squares fit with fixed codes."""

from __future__ import annotations

import pytest
import torch

from lrcompress.number_formats import Codes, GridFormat, Int2, Int4, UInt4
from lrcompress.rounding import RoundingTask, rounding_loss, scale_refit
from lrcompress.rounding.scale_refit import refitted
from tests.rounding.reference import random_metric, seeded

COLUMNS = 45  # the last block of a row is shorter


def drawn(format: GridFormat, seed: int) -> tuple[RoundingTask, Codes]:
    generator = seeded(seed)
    weight = torch.randn(12, COLUMNS, dtype=torch.float64, generator=generator)
    grid = format.grid(weight)
    task = RoundingTask(
        weight, format, random_metric(COLUMNS, generator), random_metric(12, generator)
    )
    return task, Codes(grid, grid.nearest(weight))


@pytest.mark.parametrize("format", [Int4(16), UInt4(16), Int2(16), Int4(0)], ids=str)
def test_refit_lowers_the_loss_and_keeps_the_codes(format: GridFormat) -> None:
    for seed in range(5):
        task, codes = drawn(format, seed)
        found = refitted(task, codes)
        assert torch.equal(found.codes, codes.codes)
        assert rounding_loss(task, found) < rounding_loss(task, codes)


def test_refit_converges_to_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_refit, "ITERATIONS", 200)
    task, codes = drawn(Int4(16), 0)
    assert task.input is not None
    assert task.output is not None
    found = refitted(task, codes)
    rows, blocks = codes.grid.scales.shape
    levels = codes.codes.double() - 8
    columns = []
    for row in range(rows):
        for block in range(blocks):
            part = torch.zeros_like(levels)
            part[row, block * 16 : block * 16 + 16] = levels[row, block * 16 : block * 16 + 16]
            columns.append(part)
    images = torch.stack([(task.output @ part @ task.input).flatten() for part in columns])
    flat = torch.stack([part.flatten() for part in columns])
    best = torch.linalg.solve(flat @ images.mT, images @ task.weight.flatten())
    exact = (flat.mT @ best).view(rows, COLUMNS)
    error = task.weight - exact
    least = 0.5 * float(((task.output @ error) * (error @ task.input)).sum())
    # Rounding to float16 changes a scale by 2^-11 at most, and the loss in second order only:
    # by (2^-11)^2 times the ratio of signal to error, some 1e3
    assert rounding_loss(task, found) == pytest.approx(least, rel=1e-3)


def test_scales_of_many_operations_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_refit, "MOST_OPERATIONS", 1.0)
    task, codes = drawn(Int4(16), 0)
    assert refitted(task, codes) is codes
