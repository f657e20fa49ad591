"""Claims of what may change: the smallest reachable budget is the same in every metric."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lrcompress.errors import BudgetError
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batch
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile

WIDTH, HIDDEN, OUT = 16, 32, 8
LAYERS = [(HIDDEN, WIDTH), (HIDDEN, HIDDEN), (OUT, HIDDEN)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(n, m) for m, n in LAYERS]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()


@torch.no_grad()
def all_zero(module: nn.Sequential) -> None:
    for parameter in module.parameters():
        parameter.zero_()


@torch.no_grad()
def zero_weights(module: nn.Sequential) -> None:
    for place in (0, 2, 4):
        module.get_parameter(f"{place}.weight").zero_()


@torch.no_grad()
def one_zero(module: nn.Sequential) -> None:
    module.get_parameter("2.weight").zero_()


@torch.no_grad()
def exactly_low_rank(module: nn.Sequential) -> None:
    for place in (0, 2, 4):
        weight = module.get_parameter(f"{place}.weight")
        weight.copy_(torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1]))


@torch.no_grad()
def constant(module: nn.Sequential) -> None:
    for parameter in module.parameters():
        parameter.fill_(0.1)


@torch.no_grad()
def dead_on_the_data(module: nn.Sequential) -> None:
    module.get_parameter("0.bias").fill_(-100.0)


def untouched(module: nn.Sequential) -> None:
    pass


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [{"input": torch.randn(16, WIDTH, generator=generator)} for _ in range(3)]


DAMAGES = [
    all_zero, zero_weights, one_zero, exactly_low_rank, constant, dead_on_the_data, untouched,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_smallest_budget_does_not_depend_on_the_metric(
    damage: Callable[[nn.Sequential], None],
) -> None:
    """Rank one in every layer, and the biases; whichever metric the profile or the plan is in."""
    module = network()
    damage(module)
    smallest = sum(2 * m + n for m, n in LAYERS)  # rank one and a bias
    dense = sum(m * n + m for m, n in LAYERS)
    percent = f"{-(-1000 * smallest // dense) / 10:g} %"
    for measured_in in [None, *METRICS]:
        options = ProfileOptions(metric=measured_in, trials=measured_in == "two-sided")
        found = profile(module, batches() if measured_in else None, options)
        assert [layer.name for layer in found.layers] == ["0", "2", "4"]
        for metric in found.layers[0].spectra:
            for allocator in ALLOCATORS:
                asked = PlanOptions(metric=metric, allocator=allocator)
                with pytest.raises(BudgetError, match=re.escape(f"reachable is {percent}")):
                    plan(found, "1%", asked)
                assert plan(found, percent.replace(" ", ""), asked).within_budget


def test_a_network_that_loses_nothing_is_cut_to_the_least_at_no_gap() -> None:
    module = network()
    all_zero(module)
    decided = plan(profile(module, batches()), "50%")
    assert decided.predicted_loss == 0.0
    assert decided.lower_bound == 0.0
    assert decided.optimality_gap == 0.0
    assert decided.within_budget
