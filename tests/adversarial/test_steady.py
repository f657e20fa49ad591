"""A network that is another function at each call is refused before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adversarial.situations import SITUATIONS
from lrcompress.errors import ModelError
from lrcompress.sources.steady import check_steady

EXAMPLE = {"x": torch.linspace(-1, 1, 24)[None]}


class Grows(nn.Module):
    """A table that is made at the first call, and an attribute that grows with each."""

    def __init__(self, *, grows: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 8)
        self.grows, self.calls = grows, 0
        self.register_buffer("table", None)

    def forward(self, x: Tensor) -> Any:
        if self.table is None:
            self.table = torch.linspace(0, 1, 24)
        self.calls += self.grows
        return self.layer(x + self.table).repeat(1, 1 + self.calls)


@pytest.mark.parametrize(
    "name", ["noise", "slight_noise", "drops_always", "samples", "running_mean",
             "adds_its_last_output"]
)  # fmt: skip
def test_outputs_that_change_from_call_to_call_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="changes from call to call"):
        check_steady(SITUATIONS[name].make().eval(), EXAMPLE, "here")


def test_a_buffer_that_changes_at_each_call_is_named() -> None:
    with pytest.raises(ModelError, match="buffer calls"):
        check_steady(SITUATIONS["counts_its_calls"].make().eval(), EXAMPLE, "here")


def test_outputs_of_another_size_at_each_call_are_refused() -> None:
    with pytest.raises(ModelError, match="by inf of its size"):
        check_steady(Grows(grows=True), EXAMPLE, "here")


@pytest.mark.parametrize("name", ["dropout", "makes_a_table", "remembers_unread", "bare_tensor"])
def test_what_is_made_once_or_not_read_is_no_change(name: str) -> None:
    check_steady(SITUATIONS[name].make().eval(), EXAMPLE, "here")


def test_a_buffer_made_at_the_first_call_is_no_change() -> None:
    check_steady(Grows(grows=False), EXAMPLE, "here")


def test_the_random_numbers_of_others_stay_as_they_are() -> None:
    network = SITUATIONS["noise"].make().eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(ModelError):
        check_steady(network, EXAMPLE, "here")
    assert torch.equal(torch.rand(2), expected)
