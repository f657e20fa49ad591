"""Curvature for finite changes of logits: it costs what a finite change costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrcompress.network.objectives import OBJECTIVES, smoothing
from lrcompress.network.objectives.smoothing import sigmoid_probe, softmax_probe

DRAWS = 40_000
CERTAIN = torch.tensor([12.0, 0.0, -3.0, 1.0])


def spread(logits: Tensor) -> float:
    return float(logits.var(correction=0).sqrt())


@pytest.mark.parametrize("logits", [CERTAIN, torch.tensor([0.3, -0.2, 0.1]), 3 * CERTAIN])
def test_the_trace_is_the_cost_of_a_gaussian_change_of_the_softmax(logits: Tensor) -> None:
    """E[D(f, f + s z)] = 1/2 s^2 E|v|^2, exactly."""
    generator = torch.Generator().manual_seed(0)
    many, ones = logits.expand(DRAWS, -1), torch.ones(DRAWS)
    s = smoothing.SMOOTHING * spread(logits)
    v = softmax_probe(many, ones, generator)
    changed = many + s * torch.randn(many.shape, generator=generator)
    costs = OBJECTIVES["kl"].divergence(many, changed, ones).double()
    halves = 0.5 * s**2 * v.double().square().sum(-1)
    slack = 5 * (costs.var() / DRAWS + halves.var() / DRAWS).sqrt()
    assert abs(costs.mean() - halves.mean()) <= slack
    # at the point itself there would be next to nothing
    p = CERTAIN.softmax(-1)
    assert float((p.diag() - p.outer(p)).trace()) < 1e-4


def test_the_trace_is_the_cost_of_a_gaussian_change_of_the_sigmoid() -> None:
    generator = torch.Generator().manual_seed(0)
    logit, ones = torch.full((DRAWS, 1), -9.0), torch.ones(DRAWS)
    s = smoothing.SMOOTHING * 9.0 / 2**0.5
    v = sigmoid_probe(logit, ones, generator)
    changed = logit + s * torch.randn(logit.shape, generator=generator)
    costs = OBJECTIVES["bernoulli"].divergence(logit, changed, ones).double()
    halves = 0.5 * s**2 * v.double().square().sum(-1)
    slack = 5 * (costs.var() / DRAWS + halves.var() / DRAWS).sqrt()
    assert abs(costs.mean() - halves.mean()) <= slack


def test_a_probe_of_probabilities_is_that_of_their_logits_through_the_softmax() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.ones(5)
    p = logits.softmax(-1)
    v = OBJECTIVES["probabilities"].probe(p.detach(), weights, torch.Generator().manual_seed(2))
    p.backward(v)  # type: ignore[no-untyped-call]
    expected = softmax_probe(logits.detach(), weights, torch.Generator().manual_seed(2))
    assert logits.grad is not None
    # FLOOR is 1e-7 of probabilities of a hundredth and more
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=1e-4)


def test_classes_that_are_masked_out_have_no_part_in_it() -> None:
    logits = torch.cat([torch.randn(3, 6), torch.full((3, 2), float("-inf"))], 1)
    v = softmax_probe(logits, torch.ones(3), torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(v).all())
    assert float(v[:, 6:].abs().max()) == 0


def test_padding_has_no_probe_and_no_spread() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loud = torch.where(weights.unsqueeze(-1) > 0, logits, 1e4 * logits)
    quiet = softmax_probe(logits, weights, torch.Generator().manual_seed(1))
    v = softmax_probe(loud, weights, torch.Generator().manual_seed(1))
    assert float(v[weights == 0].abs().max()) == 0
    torch.testing.assert_close(v, quiet)
