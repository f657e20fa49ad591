"""Claims of compressed deep matrix completion, at a size that takes no time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.completion import (
    COMPRESSED,
    FULL,
    METHODS,
    RANK,
    TOLERANCE,
    Deep,
    Problem,
    compressed,
    run,
)

SIZE, SHARE = 40, 0.6


def problem() -> Problem:
    return Problem.draw(SIZE, SHARE, 0)


def test_a_step_is_that_of_the_exact_gradients() -> None:
    given, rate = problem(), 0.1
    deep = compressed(given, 0.5, 1)
    factors = [f.clone().requires_grad_() for f in (deep.first, deep.second, deep.third)]
    product: Tensor = factors[2] @ factors[1] @ factors[0]
    seen = given.weights > 0
    loss = (product - given.matrix)[seen].square().sum() / 2 * given.weights.max()
    loss.backward()  # type: ignore[no-untyped-call]
    found = deep.value()
    torch.testing.assert_close(found, product.detach())
    deep.descend_(given.gradient(found), rate)
    for mine, factor in zip((deep.first, deep.second, deep.third), factors, strict=True):
        assert factor.grad is not None
        torch.testing.assert_close(mine, factor.detach() - rate * factor.grad)


@pytest.mark.parametrize("method", METHODS)
def test_both_recover_the_matrix_from_some_of_its_entries(method: str) -> None:
    row = run(problem(), method, scale=0.03, rate=0.4, seed=1)
    assert row.seen_error <= TOLERANCE
    assert row.recovery_error <= 4 * TOLERANCE


def test_compressed_needs_no_more_steps_and_a_fraction_of_the_parameters() -> None:
    full, small = (run(problem(), m, scale=0.03, rate=0.4, seed=1) for m in (FULL, COMPRESSED))
    assert small.steps <= full.steps
    assert small.params < full.params / 4


def test_what_is_not_seen_does_not_matter() -> None:
    given = problem()
    other = given.matrix + (given.weights == 0) * torch.randn(SIZE, SIZE)
    changed = Problem(other, given.weights, -other * given.weights)
    one, same = (compressed(p, 0.03, 1) for p in (given, changed))
    for deep, p in ((one, given), (same, changed)):
        assert isinstance(deep, Deep)
        for _ in range(5):
            deep.descend_(p.gradient(deep.value()), 0.4)
    assert torch.equal(one.value(), same.value())
    assert torch.linalg.matrix_rank(given.matrix) == RANK
