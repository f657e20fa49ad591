"""Inputs and outputs that are boolean or whole numbers, beside floating ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lrcompress
from adversarial.whole_path import CLOSE, WIDTH, compressed, low_rank_, outputs, rows
from lrcompress.export.forward import named_outputs
from lrcompress.network.batches import Batch
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.sources.example import example_batch
from lrcompress.sources.models import load_model


class Net(nn.Module):
    """Gates come as what the case gives; the outputs are numbers, a choice and an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, gate: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.first(x)) * gate.to(x.dtype).reshape(gate.shape[0], -1)[:, :1]
        scores = self.last(hidden)
        return {"scores": scores, "choice": scores.argmax(-1), "sure": scores.amax(-1) > 0.5}


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda x: x[:, 0] > 0,
    "bool of three axes": lambda x: x[:, :4].reshape(-1, 2, 2) > 0,
    "all true": lambda x: torch.ones(len(x), dtype=torch.bool),
    "uint8": lambda x: (x[:, 0] > 0).to(torch.uint8),
    "int8": lambda x: (x[:, 0] > 0).to(torch.int8),
    "negative": lambda x: -1 - (x[:, 0] > 0).to(torch.int64),
    "int32": lambda x: (x[:, 0] > 0).to(torch.int32),
    "float64": lambda x: x[:, 0].double(),
}


def make() -> nn.Module:
    torch.manual_seed(0)
    return low_rank_(Net())


def _batches(name: str) -> list[Batch]:
    return [{**batch, "gate": GATES[name](batch["x"])} for batch in rows(WIDTH, count=8)]


class Data:
    """The batches of each case, as attributes that the command line can name."""


for _place, _name in enumerate(GATES):
    setattr(Data, f"case{_place}", staticmethod(lambda name=_name: _batches(name)))


FAST = ("negative",)
PLACES = [
    pytest.param(place, id=name, marks=() if name in FAST else pytest.mark.slow)
    for place, name in enumerate(GATES)
]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_takes_whole_numbers(place: int, tmp_path: Path) -> None:
    source = SourceOptions(f"{__name__}:make", data=f"{__name__}:Data.case{place}")
    where = FolderOptions(tmp_path / "out", report=False)
    result = run(RunOptions(source, where, Budget.parse("60%")))
    assert result.report.verified
    batch = _batches(list(GATES)[place])[0]
    wanted = named_outputs(make()(**batch))
    loaded = named_outputs(lrcompress.load(tmp_path / "out")(**batch))
    torch.testing.assert_close(loaded["scores"], wanted["scores"], **CLOSE)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    feed = {name: _as_fed(batch[name]) for name in batch}
    got = dict(zip([x.name for x in session.get_outputs()], session.run(None, feed), strict=True))
    torch.testing.assert_close(torch.as_tensor(got["scores"]), wanted["scores"], **CLOSE)
    assert got["choice"].dtype == numpy.int64
    assert got["sure"].dtype == numpy.bool_
    for name in ("choice", "sure"):
        assert torch.equal(torch.as_tensor(got[name]), wanted[name])
    # What it takes is known without data
    again = RunOptions(
        SourceOptions(str(tmp_path / "out")),
        FolderOptions(tmp_path / "again", report=False),
        Budget.parse("99%"),
    )
    assert run(again).report.verified


def _as_fed(value: Tensor) -> Any:
    array = value.numpy()
    taken = {"f": numpy.float32, "b": numpy.bool_}  # whole numbers are int64
    return array.astype(taken.get(array.dtype.kind, numpy.int64))


def test_masks_in_a_network_are_no_rows_of_a_layer() -> None:
    """Boolean outputs of submodules and empty selections go through the hooks."""

    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.rare = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x.t().contiguous().t())
            chosen = hidden.sum(-1) > 1e6
            hidden[chosen] = self.rare(hidden[chosen])
            out: Tensor = self.last(hidden)
            return out

    torch.manual_seed(0)
    module = low_rank_(Selecting())
    batches = rows(WIDTH)
    other, profiled, _ = compressed(module, batches)
    torch.testing.assert_close(
        outputs(other, batches[0])[0], outputs(module, batches[0])[0], **CLOSE
    )
    assert {layer.name for layer in profiled.layers} >= {"first", "last"}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool])
def test_what_is_recorded_of_an_input_can_be_read(dtype: torch.dtype, tmp_path: Path) -> None:
    """From Python a batch keeps its types."""
    loaded = load_model(f"{__name__}:make")
    batches = [{**batch, "gate": (batch["x"][:, 0] > 0).to(dtype)} for batch in rows(WIDTH)]
    profiled = lrcompress.profile(loaded.module, batches)
    plan = lrcompress.plan(profiled, "60%")
    lrcompress.compress_(loaded.module, plan, profiled, batches=batches)
    lrcompress.save_compressed(
        loaded.module, plan, loaded, tmp_path / "m", example=batches[0], extra={}
    )
    again = load_model(str(tmp_path / "m"))
    made = example_batch(again)
    assert made["gate"].dtype is dtype
    again.module(**made)
