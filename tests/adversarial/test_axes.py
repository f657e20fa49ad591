"""Axes that a network takes in other sizes are free in its graph; the others are fixed, and said.

The verdict on each axis is held against what the network is known to be, and every graph is run in
ONNX Runtime in sizes that it was not traced with.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from adversarial import shapes
from adversarial.shapes import Of, ids
from lrcompress.errors import DataError, ExportError
from lrcompress.export.axes import AxisRequest, find_axes
from lrcompress.export.axis_metadata import fixed_axes, known_axes
from lrcompress.export.axis_range import AxisRange, find_range
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.export_onnx import ExportReport, export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.forward import named_outputs
from lrcompress.export.graph_axes import GraphAxes
from lrcompress.export.session import open_session
from lrcompress.export.traced_axes import exportable_axes
from lrcompress.export.verify.verify import verify
from lrcompress_cli import main

ANY = AxisRange()


@dataclass(frozen=True, eq=False)
class Row:
    """A network, an example, the names of its axes and the sizes they take."""

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]
    axes: dict[str, tuple[str | int, ...]]  # a text: free, and its name
    ranges: dict[str, AxisRange]
    other: Callable[[], dict[str, Tensor]]  # sizes that no trace has seen


def noise(*sizes: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"x": torch.randn(*sizes)}


def text(rows: int, length: int, **more: Tensor) -> dict[str, Tensor]:
    mask = torch.ones(rows, length, dtype=torch.long)
    return {"input_ids": ids(rows, length), "attention_mask": mask, **more}


IMAGE = ("batch", 3, "height", "width")
ROWS = {
    "board": Row(
        shapes.Board,
        lambda: {"board": ids(16, 9)},
        {"board": ("batch", 9)},
        {"batch": ANY},
        lambda: {"board": ids(7, 9)},
    ),
    "table of five columns": Row(
        lambda: Of(lambda m, x: m.out(x), out=nn.Linear(5, 3)),
        noise(16, 5),
        {"x": ("batch", 5)},
        {"batch": ANY},
        noise(1, 5),
    ),
    "fully convolutional": Row(
        lambda: Of(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 6, 3, 2), b=nn.Conv2d(6, 4, 3)),
        noise(4, 3, 20, 20),
        {"x": IMAGE},
        {"batch": ANY, "height": AxisRange(7), "width": AxisRange(7)},
        noise(3, 3, 9, 31),
    ),
    "pooled over the image": Row(
        lambda: Of(lambda m, x: m.b(m.a(x).mean((2, 3))), a=nn.Conv2d(3, 6, 3), b=nn.Linear(6, 2)),
        noise(4, 3, 12, 16),
        {"x": IMAGE},
        {"batch": ANY, "height": AxisRange(3), "width": AxisRange(3)},
        noise(1, 3, 17, 5),
    ),
    "multiples of four": Row(
        shapes.Pyramid,
        noise(2, 3, 20, 16),
        {"x": IMAGE},
        {"batch": ANY, "height": AxisRange(4, step=4), "width": AxisRange(4, step=4)},
        noise(3, 3, 8, 28),
    ),
    "absolute positions of patches": Row(
        shapes.Patches,
        noise(2, 3, 16, 16),
        {"x": ("batch", 3, 16, 16)},
        {"batch": ANY},
        noise(5, 3, 16, 16),
    ),
    "frames of a sound": Row(
        lambda: Of(lambda m, x: m.b(m.a(x)), a=nn.Conv1d(1, 6, 10, 5), b=nn.Conv1d(6, 8, 3, 2)),
        noise(2, 1, 400),
        {"x": ("batch", 1, "x_2")},
        {"batch": ANY, "x_2": AxisRange(20)},
        noise(3, 1, 133),
    ),
    "recurrent": Row(
        lambda: Of(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(5, 8, batch_first=True)),
        noise(2, 7, 5),
        {"x": ("batch", "x_1", 5)},
        {"batch": ANY, "x_1": ANY},
        noise(3, 18, 5),
    ),
    "two lengths that coincide": Row(
        shapes.TwoLengths,
        lambda: text(2, 12, decoder_ids=ids(2, 12)),
        {
            "input_ids": ("batch", "sequence"),
            "attention_mask": ("batch", "sequence"),
            "decoder_ids": ("batch", "decoder_ids_sequence"),
        },
        {"batch": ANY, "sequence": ANY, "decoder_ids_sequence": ANY},
        lambda: text(3, 5, decoder_ids=ids(3, 17)),
    ),
    "looked up positions": Row(
        shapes.Positions,
        lambda: text(2, 9),
        {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")},
        {"batch": ANY, "sequence": AxisRange(1, 24)},
        lambda: text(3, 24),
    ),
    "square adjacency": Row(
        shapes.Neighbours,
        lambda: {"adjacency": torch.randn(2, 9, 9), "nodes": torch.randn(2, 9, 4)},
        {
            "adjacency": ("batch", "adjacency_1", "adjacency_1"),
            "nodes": ("batch", "adjacency_1", 4),
        },
        {"batch": ANY, "adjacency_1": ANY},
        lambda: {"adjacency": torch.randn(3, 4, 4), "nodes": torch.randn(3, 4, 4)},
    ),
    "squeezes a batch of one": Row(
        lambda: Of(lambda m, x: m.out(x).squeeze(), out=nn.Linear(5, 3)),
        noise(8, 5),
        {"x": ("batch", 5)},
        {"batch": AxisRange(2)},
        noise(6, 5),
    ),
    "pairs": Row(
        shapes.Pairs,
        noise(8, 5),
        {"x": ("batch", 5)},
        {"batch": AxisRange(2, step=2)},
        noise(10, 5),
    ),
    "batch of eight": Row(
        lambda: Of(lambda m, x: m.out(x.reshape(8, 5)), out=nn.Linear(5, 3)),
        noise(8, 5),
        {"x": (8, 5)},
        {},
        noise(8, 5),
    ),
    "batch alone": Row(
        lambda: Of(lambda m, x: m.out(x), out=nn.Embedding(10, 3)),
        lambda: {"x": torch.randint(10, (8,))},
        {"x": ("batch",)},
        {"batch": ANY},
        lambda: {"x": torch.randint(10, (5,))},
    ),
    "boolean mask": Row(
        lambda: Of(lambda m, x: m.out(x.float().mean(1, keepdim=True)), out=nn.Linear(1, 3)),
        lambda: {"x": torch.rand(4, 6) > 0.5},
        {"x": ("batch", "sequence")},
        {"batch": ANY, "sequence": ANY},
        lambda: {"x": torch.rand(3, 10) > 0.5},
    ),
    "one example, batch norm": Row(
        lambda: Of(lambda m, x: m.norm(m.out(x)), out=nn.Linear(5, 6), norm=nn.BatchNorm1d(6)),
        noise(1, 5),
        {"x": ("batch", 5)},
        {"batch": ANY},
        noise(3, 5),
    ),
    "an axis of one": Row(
        lambda: Of(lambda m, x: m.a(x), a=nn.Conv2d(1, 4, 3)),
        noise(2, 1, 6, 8),
        {"x": ("batch", 1, "height", "width")},
        {"batch": ANY, "height": AxisRange(3), "width": AxisRange(3)},
        noise(1, 1, 5, 12),
    ),
    "input without effect": Row(
        shapes.IgnoredInput,
        lambda: {"x": torch.randn(4, 5), "extra": torch.randn(4, 6)},
        {"x": ("batch", 5), "extra": ("batch", "extra_1")},
        {"batch": ANY, "extra_1": ANY},
        lambda: {"x": torch.randn(2, 5), "extra": torch.randn(2, 6)},
    ),
}


def network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return ROWS[name].make().eval(), ROWS[name].batch()


@dataclass(frozen=True, eq=False)
class Exported:
    module: nn.Module
    batch: dict[str, Tensor]
    path: Path
    report: ExportReport


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The graph of a row, made once; who changes it takes a copy."""

    @functools.cache
    def made(name: str) -> Exported:
        module, batch = network(name)
        path = tmp_path_factory.mktemp("graphs") / "model.onnx"
        return Exported(module, batch, path, export_onnx(module, batch, path))

    return made


def shape_of(axes: GraphAxes, batch: dict[str, Tensor]) -> dict[str, tuple[str | int, ...]]:
    return {
        name: tuple(axes.free[name].get(axis, size) for axis, size in enumerate(tensor.shape))
        for name, tensor in batch.items()
    }


@pytest.mark.parametrize("name", ROWS)
def test_each_axis_is_found_to_be_what_the_network_takes(name: str) -> None:
    module, batch = network(name)
    found = find_axes(module, batch)
    row = ROWS[name]
    assert shape_of(found, batch) == row.axes
    assert {label: axis.range for label, axis in found.known.items()} == row.ranges
    assert len(found.lines) == len(batch)


# One of each kind: any size, a least and a largest one, multiples, a fixed one, two inputs.
FEW = (
    "multiples of four",
    "looked up positions",
    "pairs",
    "batch of eight",
    "two lengths that coincide",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.slow) for n in ROWS]
)
def test_the_graph_is_right_in_sizes_that_it_was_not_traced_with(
    name: str, exported: Callable[[str], Exported]
) -> None:
    row = exported(name)
    module, batch = row.module, row.batch
    assert {port.name: port.axes for port in row.report.inputs} == ROWS[name].axes
    other = ROWS[name].other()
    session = open_session(row.path)
    taken = {given.name for given in session.get_inputs()}
    feed = {key: tensor.numpy() for key, tensor in other.items() if key in taken}
    got = session.run(None, feed)
    wanted = named_outputs(module(**other))
    assert len(got) == len(wanted)
    for ours, theirs in zip(wanted.values(), got, strict=True):
        scale = float(ours.detach().abs().amax())
        np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-5 * scale)
    for value, ours in zip(session.get_outputs(), wanted.values(), strict=True):
        stated = [size for size in value.shape if isinstance(size, int)]
        actual = [n for n, size in zip(ours.shape, value.shape, strict=True) if size in stated]
        assert actual == stated  # what the file states of its outputs holds in other sizes too
    checked = verify(row.path, module, batch)
    assert checked.ok, [check.detail for check in checked.failed]


def test_metadata_tells_what_is_fixed_and_what_is_taken(
    exported: Callable[[str], Exported],
) -> None:
    stored = onnx.load(exported("multiples of four").path).metadata_props
    metadata = {entry.key: entry.value for entry in stored}
    assert json.loads(metadata["lrcompress.axis_steps"]) == {"height": 4, "width": 4}
    assert fixed_axes(metadata) == {"x": (1,)}
    assert known_axes(metadata)["width"].range == AxisRange(4, None, 4)
    assert known_axes(metadata)["width"].size == 16
    assert fixed_axes({}) is None  # another exporter's: nothing is known


def test_metadata_that_makes_no_sense_decides_nothing(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """A file from elsewhere may say anything: no size that the data do not support is drawn."""
    row = exported("multiples of four")
    path = Path(shutil.copy(row.path, tmp_path))
    model = onnx.load(path)
    told = {
        "axis_limits": '{"batch": [100000000, null], "height": [1000000, null], "width": [[]]}',
        "axis_sizes": '{"batch": 2, "height": 1000000, "width": 1000000}',
        "fixed_axes": '{"x": "all"}',
    }
    for steps in ("[1, 2", '{"width": 4}'):
        for entry in model.metadata_props:
            values = told | {"axis_steps": steps}
            entry.value = values.get(entry.key.removeprefix("lrcompress."), entry.value)
        onnx.save(model, path)
        assert verify(path, row.module, row.batch)["parity"].passed is True
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert fixed_axes(metadata) == {}
    with pytest.raises(DataError, match="its input x would be batch x 3 x 1000000 x 1000000"):
        bench([BenchTarget("dense", path)], BenchSettings(runs=1, warmup=0))


# ---- what is said ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("board", "the length of board is fixed to 9: Board fails at 10"),
        ("squeezes a batch of one", "the graph's batch is 2 or more: Of fails for others (at 1"),
        ("pairs", "the graph's batch is multiples of 2 from 2"),
        ("batch of eight", "the graph's batch is fixed to 8: Of fails at 9"),
    ],
)
def test_what_nobody_would_expect_is_a_note(name: str, told: str) -> None:
    (note,) = find_axes(*network(name)).notes
    assert note.startswith(told)


def test_an_expected_axis_is_no_note() -> None:
    silent = ["table of five columns", "fully convolutional", "looked up positions", "recurrent"]
    for name in silent:
        assert find_axes(*network(name)).notes == ()


def test_examples_that_depend_on_each_other_are_told() -> None:
    module = Of(lambda m, x: m.out(x - x.mean(0)), out=nn.Linear(5, 3)).eval()
    for rows in (1, 4):  # of one example the rows are copies, which hide it unless they are varied
        (note,) = find_axes(module, {"x": torch.randn(rows, 5)}).notes
        assert "mixes the examples of a batch" in note


def test_whole_numbers_of_one_example_show_dependence_too() -> None:
    module = Of(
        lambda m, x: m.out(x).mean(1) - m.out(x).mean((0, 1)), out=nn.Embedding(13, 3)
    ).eval()
    (note,) = find_axes(module, {"x": ids(1, 6)}).notes
    assert "mixes the examples" in note


def test_outputs_that_are_random_are_no_dependence() -> None:
    module = Of(lambda m, x: nn.functional.dropout(m.out(x), 0.5), out=nn.Linear(5, 3)).eval()
    assert find_axes(module, {"x": torch.randn(4, 5)}).notes == ()


def test_probing_changes_nothing() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.out(x)
            return out

    module, before = Counts().train(), torch.get_rng_state()
    find_axes(module, {"x": torch.randn(4, 5)})
    assert float(module.calls) == 0
    assert module.training
    torch.manual_seed(3)
    first = torch.rand(3)
    torch.manual_seed(3)
    find_axes(module, {"x": torch.ones(4, 5)})
    assert torch.equal(torch.rand(3), first)
    assert len(before) == len(torch.get_rng_state())


# ---- what is asked --------------------------------------------------------------------------


def test_an_axis_is_fixed_on_request_with_those_that_move_along() -> None:
    module, batch = network("looked up positions")
    found = find_axes(module, batch, AxisRequest(fixed={"attention_mask": (1,)}))
    assert shape_of(found, batch) == {
        "input_ids": ("batch", 9),
        "attention_mask": ("batch", 9),
    }
    assert found.notes == ()  # it was asked for


def test_a_batch_is_fixed_on_request(tmp_path: Path) -> None:
    module, batch = network("table of five columns")
    options = ExportOptions(fixed={"x": (0,)})
    report = export_onnx(module, batch, tmp_path / "model.onnx", options)
    assert report.inputs[0].axes == (16, 5)
    assert verify(tmp_path / "model.onnx", module, batch).ok


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (AxisRequest(dynamic={"board": {1: ""}}), "takes axis 1 of board in size 9 only"),
        (AxisRequest(dynamic={"bord": {1: ""}}), "no input named 'bord'; the inputs are board"),
        (AxisRequest(dynamic={"board": {2: ""}}), "there is no axis 2; name one from 0 to 1"),
        (AxisRequest(fixed={"bord": (1,)}), "no input named 'bord'; the inputs are board"),
        (AxisRequest(fixed={"board": (2,)}), "there is no axis 2"),
        (AxisRequest(dynamic={"board": {0: ""}}, fixed={"board": (0,)}), "dynamic and fixed"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(request_: AxisRequest, message: str) -> None:
    module, batch = network("board")
    with pytest.raises(ExportError, match=message) as caught:
        exportable_axes(module, batch, request_)
    assert "\n" not in str(caught.value)


class LoopOverLength(nn.Module):
    """Takes any length; its trace holds that of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.out(x[:, place]) for place in range(int(x.shape[1]))]
        return torch.stack(steps, 1)


NOTE = "axis 1 of x is fixed to 6: LoopOverLength takes other sizes, but"


def test_what_only_the_trace_fixes_is_told_before_the_work() -> None:
    (note,) = exportable_axes(LoopOverLength().eval(), {"x": torch.randn(2, 6, 4)}).notes
    assert note.startswith(NOTE)


@pytest.mark.slow
def test_what_only_the_trace_fixes_is_told_in_the_graph_and_cannot_be_requested(
    tmp_path: Path,
) -> None:
    module, batch = LoopOverLength().eval(), {"x": torch.randn(2, 6, 4)}
    report = export_onnx(module, batch, tmp_path / "model.onnx")
    assert report.inputs[0].axes == ("batch", 6, 4)
    (note,) = report.notes
    assert note.startswith(NOTE)
    with pytest.raises(ExportError):
        exportable_axes(module, batch, AxisRequest(dynamic={"x": {1: ""}}))


class BranchOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 0:
            x = -x
        out: Tensor = self.out(x)
        return out


def test_what_cannot_be_traced_is_refused_before_the_work() -> None:
    with pytest.raises(ExportError, match="cannot be traced"):
        exportable_axes(BranchOnValues().eval(), {"x": torch.randn(2, 4)})


def test_rows_elsewhere_than_in_front_are_refused() -> None:
    """By the convention of the data examples come first; a sequence-first network mixes them up."""
    batch = {"x": torch.randn(7, 2, 5), "lengths": torch.randint(3, (2,))}
    with pytest.raises(ExportError, match="differ in their number of examples"):
        find_axes(shapes.IgnoredInput().eval(), batch)
    with pytest.raises(ExportError, match="scalar"):
        find_axes(shapes.IgnoredInput().eval(), {"x": torch.tensor(1.0)})


# ---- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "own", "found"),
    [
        (lambda n: True, 9, AxisRange()),
        (lambda n: n <= 40, 40, AxisRange(1, 40)),
        (lambda n: n >= 7, 20, AxisRange(7)),
        (lambda n: n % 4 == 0 and n >= 8, 24, AxisRange(8, None, 4)),
        (lambda n: n % 32 == 0, 64, AxisRange(32, None, 32)),
        (lambda n: n % 2 == 0 and n <= 20, 20, AxisRange(2, 20, 2)),
        (lambda n: n <= 512, 30, AxisRange(1, 512)),  # a table of as many rows
        (lambda n: n <= 512, 11, AxisRange(1, 512)),
    ],
)
def test_ranges_are_found_from_trials(takes, own: int, found: AxisRange) -> None:
    assert find_range(lambda n: None if takes(n) else "no", own, (384, 514)) == (found, "")


@pytest.mark.parametrize(
    "takes",
    [
        lambda n: n == 16,
        lambda n: 16 <= n < 20,  # a convolution of stride 4 drops the rest
        lambda n: n in (15, 16),
    ],
)
def test_an_axis_that_hardly_moves_is_fixed(takes) -> None:
    assert find_range(lambda n: None if takes(n) else "no", 16)[0] is None


RANGES = st.builds(
    AxisRange,
    least=st.integers(1, 20),
    most=st.none() | st.integers(20, 60),
    step=st.integers(1, 12),
)


@given(RANGES, RANGES, st.integers(1, 80))
def test_an_intersection_holds_what_both_ranges_hold(a: AxisRange, b: AxisRange, size: int) -> None:
    assert (size in a.intersection(b)) == (size in a and size in b)


# ---- bench and the command line -------------------------------------------------------------


def test_bench_draws_sizes_that_the_graph_takes(exported: Callable[[str], Exported]) -> None:
    targets = [BenchTarget("dense", exported("looked up positions").path)]
    quick = {"runs": 1, "warmup": 0, "measure_memory": False}
    report = bench(targets, BenchSettings(**quick))
    assert {(row.batch, row.length) for row in report.latencies} == {(1, 24), (8, 24)}
    with pytest.raises(DataError, match="takes a sequence of 1 to 24, not of 128; bench with 24"):
        bench(targets, BenchSettings(lengths=(128,), **quick))


@pytest.mark.parametrize(
    ("name", "batches"), [("multiples of four", [1, 8]), ("pairs", [2, 8]), ("batch of eight", [8])]
)
def test_bench_knows_images_and_batches(
    name: str, batches: list[int], exported: Callable[[str], Exported]
) -> None:
    settings = BenchSettings(runs=1, warmup=0, measure_memory=False)
    report = bench([BenchTarget("dense", exported(name).path)], settings)
    assert [row.batch for row in report.latencies] == batches
    assert all(row.length is None for row in report.latencies)


MODEL = ("adversarial.shapes:board", "--data", "adversarial.shapes:boards", "--budget", "90%")


def command(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main.main, arguments)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of the board, and what it told on stdout and stderr."""
    out = tmp_path_factory.mktemp("board") / "out"
    code, shown, told = command("compress", *MODEL, "-o", str(out), "--no-report")
    assert code == 0, told
    return out, shown, told


def test_a_network_of_one_length_is_compressed_and_verified(
    finished: tuple[Path, str, str],
) -> None:
    out, shown, told = finished
    assert "input board (batch, 9); axis 1 fixed" in shown
    assert "the length of board is fixed to 9: Board fails at 10" in told
    report = json.loads((out / "report.json").read_text())
    assert report["axes"][0].startswith("board (batch, 9); axis 1 fixed (at 10: ")
    assert any("the length of board is fixed to 9" in line for line in report["warnings"])
    assert [check["passed"] for check in report["checks"] if check["name"] == "parity"] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dynamic", "board:1"), "takes axis 1 of board in size 9 only"),
        (("--dynamic", "boards:1"), "no input named 'boards'; the inputs are board"),
        (("--fixed", "board:3"), "there is no axis 3"),
    ],
)
def test_axes_that_cannot_be_stop_a_run_before_its_work(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, told = command("compress", *MODEL, *options, "-o", str(out))
    assert code == 7
    assert message in told
    assert not out.exists()


def test_an_axis_is_written_as_name_and_number(tmp_path: Path) -> None:
    code, _, told = command("compress", *MODEL, "--fixed", "board", "-o", str(tmp_path / "out"))
    assert code == 2
    assert "write NAME:AXIS" in told


def test_a_dry_run_tells_the_axes() -> None:
    code, shown, _ = command("compress", *MODEL, "--dry-run", "--json")
    assert code == 0
    assert json.loads(shown)["axes"][0].startswith("board (batch, 9)")


TUNE = ("--data", "adversarial.shapes:boards", "--steps", "2", "--no-report")


def test_tuning_exports_with_the_axes_of_the_request_and_of_the_last_export(
    finished: tuple[Path, str, str], tmp_path: Path
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    for asked in (("--fixed", "board:0"), ("--seed", "2")):
        code, shown, told = command("tune", str(out), *TUNE, *asked)
        assert code == 0, told
        assert "input board (16, 9)" in shown


@pytest.mark.slow
def test_tuning_exports_with_the_axes_of_the_run_and_of_the_request(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    code, _, told = command("compress", *MODEL, "--fixed", "board:0", "-o", out, "--no-report")
    assert code == 0, told
    code, shown, told = command("tune", out, *TUNE)
    assert code == 0, told
    assert "input board (16, 9)" in shown
    for asked in (("--dynamic", "board:0", "--seed", "1"), ("--seed", "2")):
        code, shown, told = command("tune", out, *TUNE, *asked)
        assert code == 0, told
        assert "input board (batch, 9)" in shown
