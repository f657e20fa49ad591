"""Runs over weights that other programs saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import lrcompress
from adversarial.situations.checks import apart, exact_budget, graph_outputs, outputs_of, unexpected
from adversarial.situations.situation import features
from lrcompress.network.batches import Batch
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.structures import Dense

WIDTH, HIDDEN, OUT = 24, 48, 20


State = dict[str, Tensor]


class Net(nn.Module):
    """Three layers and a norm with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.head = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.relu(self.first(x)))
        return torch.as_tensor(self.head(torch.tanh(self.second(h))))


def build() -> nn.Module:
    return Net()


def batches() -> list[Batch]:
    return features(WIDTH)(0)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def mixed(state: State) -> State:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return {
        name: tensor.to(dtypes[place % 4]) if tensor.is_floating_point() else tensor
        for place, (name, tensor) in enumerate(state.items())
    }


def check_run(
    source: SourceOptions,
    dense: nn.Module,
    given: Batch,
    output: Path,
    layers: int,
    left: dict[str, str],
    tolerance: float = 2e-3,
    rounding: float = 1e-5,
) -> None:
    """The compressed module and its graph do what `dense` does, and all layers were factored."""
    result = run(
        RunOptions(source, FolderOptions(output, report=False), exact_budget(source, rounding))
    )
    kinds = {x.kind: x.reason for x in result.profile.left_alone if x.matrix_params}
    assert unexpected(result, kinds, left, ()) == []
    assert {c.name: c.detail for c in result.report.checks if c.passed is False} == {}
    assert len(result.plan.layers) == layers
    unchanged = [x.name for x in result.plan.layers if isinstance(x.structure, Dense)]
    assert len(unchanged) <= (0 if rounding <= 1e-3 else 1)  # rounded weights have no exact rank
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    wanted = outputs_of(dense, given)
    assert apart(outputs_of(lrcompress.load(output), given), wanted) <= tolerance
    assert apart(graph_outputs(session, given), wanted) <= tolerance
