"""Networks that change activations in place go through every stage, and come out the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lrcompress
from adversarial.whole_path import (
    WIDTH,
    assert_exports,
    assert_same,
    compressed,
    low_rank_,
    rows,
)
from lrcompress.tuning.options import TuneOptions


class Between(nn.Module):
    """`change` lies between two layers; `own` is what it may call."""

    def __init__(self, change: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.first, self.own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.change(self, self.first(x)))
        return out


def _first_to_zero(m: Any, x: Tensor) -> Tensor:
    y = m.own(x)
    y[:, 0] = 0
    return y  # type: ignore[no-any-return]


def _multiplied(m: Any, x: Tensor) -> Tensor:
    return m.own(x).mul_(2)  # type: ignore[no-any-return]


def _out_argument(m: Any, x: Tensor) -> Tensor:
    y = m.own(x)
    if torch.is_grad_enabled() and y.requires_grad:  # which torch refuses with out=
        return torch.tanh(y)
    return torch.tanh(y, out=y)


def _input_after_use(m: Any, x: Tensor) -> Tensor:
    y = m.own(x)
    x.mul_(0.5)
    return y + x  # type: ignore[no-any-return]


def _residual(m: Any, x: Tensor) -> Tensor:
    x += m.own(x)
    return x


def _views(m: Any, x: Tensor) -> Tensor:
    y = m.own(x)
    y[..., : WIDTH // 2].tanh_()
    return y.view(-1, WIDTH)  # type: ignore[no-any-return]


def _halves(m: Any, x: Tensor) -> Tensor:
    a, b = m.own(x).split(WIDTH // 2, -1)
    return torch.cat([a * 2, b.clone().relu_()], -1)


def _input_by_the_next(m: Any, x: Tensor) -> Tensor:
    return m.own(x.sigmoid_())  # type: ignore[no-any-return]


def _its_own_result(m: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(m.own(x)).mul_(2)


CHANGES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu_": lambda m, x: m.own(functional.relu_(x)),
    "first to zero": _first_to_zero,
    "mul_": _multiplied,
    "out": _out_argument,
    "input after use": _input_after_use,
    "residual": _residual,
    "its own result": _its_own_result,
    "views": _views,
    "halves": _halves,
    "input by the next": _input_by_the_next,
    "masked": lambda m, x: m.own(x).masked_fill_(x > 0, 0.5),
    "clamp": lambda m, x: m.own(x).clamp_(-1, 1),
    "normalised": lambda m, x: m.own(x).div_(1 + x.norm(dim=-1, keepdim=True)),
    **{
        type(layer).__name__: lambda m, x, layer=layer: layer(m.own(layer(x)))  # type: ignore[misc]
        for layer in (
            nn.ReLU(inplace=True),
            nn.SiLU(inplace=True),
            nn.ELU(inplace=True),
            nn.LeakyReLU(inplace=True),
            nn.Hardtanh(inplace=True),
            nn.Hardswish(inplace=True),
            nn.Mish(inplace=True),
            nn.Dropout(inplace=True).eval(),
        )
    },
}

EXPORTED = ("first to zero", "out", "input after use", "views", "ReLU")  # in the fast tests too


@pytest.mark.parametrize("name", CHANGES)
def test_in_place_changes_go_through_every_stage(name: str) -> None:
    torch.manual_seed(0)
    module = low_rank_(Between(CHANGES[name]))
    batches = rows(WIDTH, count=8)
    other, profiled, _ = compressed(module, batches)
    assert not profiled.left_alone
    assert_same(module, other, batches[0])

    selection = lrcompress.select(module, profiled, "50%", batches)
    assert selection.tried[0].measured == pytest.approx(0, abs=1e-6)

    tuned = copy.deepcopy(other)
    lrcompress.tune_(tuned, module, batches, TuneOptions(steps=2, learning_rate=1e-6))
    assert_same(module, tuned, batches[0])


@pytest.mark.parametrize(
    "name", [x if x in EXPORTED else pytest.param(x, marks=pytest.mark.slow) for x in CHANGES]
)
def test_in_place_changes_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = low_rank_(Between(CHANGES[name]))
    batches = rows(WIDTH)
    other, _, _ = compressed(module, batches)
    assert_exports(module, other, batches[0], tmp_path / "m.onnx")


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        keep |= x[:, 1] > 1
        x.sub_(x.mean(-1, keepdim=True)).mul_(3)
        y = self.first(x) * keep[:, None]
        x += y
        out: Tensor = self.last(torch.tanh(x))
        return out


def test_a_network_that_changes_its_input_leaves_the_data_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = low_rank_(ChangesItsInput())
    batches = [{**batch, "keep": batch["x"][:, 0] > 0} for batch in rows(WIDTH, count=8)]
    before = copy.deepcopy(batches)
    other, _, _ = compressed(module, batches)
    assert_same(module, other, batches[0])
    assert_exports(module, other, batches[0], tmp_path / "m.onnx")
    tuned = copy.deepcopy(other)
    lrcompress.tune_(tuned, module, batches, TuneOptions(steps=2, learning_rate=1e-6))
    assert_same(module, tuned, batches[0])
    for batch, wanted in zip(batches, before, strict=True):
        assert all(torch.equal(batch[name], wanted[name]) for name in batch)
