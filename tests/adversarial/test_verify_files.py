"""What verify says of files that lack something, claim too much, or are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import verified_networks as plain
from torch import Tensor, nn

from lrcompress.errors import DataError, LrcompressError, ModelError, VerifyError
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.verify.result import BudgetFacts
from lrcompress.export.verify.verify import VerifyOptions, verify


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.onnx"
    return plain.export(plain.network(), plain.tokens(), path)


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> Path:
    """With its weights beside it."""
    path = tmp_path_factory.mktemp("beside") / "model.onnx"
    return plain.export(plain.network(), plain.tokens(), path, external_data=True)


def edited(source: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    graph = onnx.load(source, load_external_data=False)
    edit(graph)
    target.write_bytes(graph.SerializeToString())
    return target


# Weights beside the graph


def test_a_file_with_its_weights_beside_it_passes_every_check(beside: Path):
    report = verify(beside, plain.network(), plain.tokens())
    assert report.ok
    for name in ("parity", "arithmetic", "values", "factors"):
        assert report[name].passed is True, report[name]


def test_a_wrong_weight_beside_the_graph_is_found(beside: Path, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(beside.read_bytes())
    data = bytearray(beside.with_name("model.onnx.data").read_bytes())
    values = np.frombuffer(data, np.float32)
    values[len(values) // 2] += 0.01
    path.with_name("model.onnx.data").write_bytes(data)
    assert verify(path, plain.network(), plain.tokens())["values"].passed is False


class Wide(nn.Module):
    """A table of more than two gigabytes before a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1_100_000, 512)
        self.layer = nn.Linear(512, 256)

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.layer(self.table(input_ids).mean(1))
        return out


@pytest.mark.slow
def test_a_file_above_two_gigabytes(tmp_path: Path):
    torch.manual_seed(0)
    module = plain.factorise_(Wide().eval(), 20, only="layer")
    batch = {"input_ids": torch.randint(1_100_000, (3, 9))}
    path = plain.export(module, batch, tmp_path / "model.onnx")
    data = path.with_name("model.onnx.data")
    assert data.stat().st_size > 2**31
    report = verify(path, module, batch)
    assert report.ok, report.failed
    assert report["values"].passed
    assert report["factors"].passed
    assert "not run" in report["arithmetic"].detail
    with data.open("r+b") as file:  # one row of a million
        values = np.memmap(file, np.float32, "r+")
        values[300_000_000] *= 1.001
        values.flush()
    assert "table.weight is off" in verify(path, module, batch)["values"].detail


# Outputs


def without(name: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        kept = [output for output in model.graph.output if output.name != name]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    return edit


def test_an_output_that_is_not_there_fails(good: Path, tmp_path: Path):
    path = edited(good, tmp_path / "m.onnx", without("logits"))
    check = verify(path, plain.network(), plain.tokens())["interface"]
    assert check.passed is False
    assert "lacks the network's output logits" in check.detail


def test_outputs_in_another_order_fail(good: Path, tmp_path: Path):
    def reverse(model: onnx.ModelProto) -> None:
        kept = list(model.graph.output)[::-1]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    check = verify(edited(good, tmp_path / "m.onnx", reverse), plain.network(), plain.tokens())
    assert "another order" in check["interface"].detail
    assert check["interface"].passed is False


@pytest.mark.parametrize(("lost", "passed"), [("last_hidden_state", None), ("logits", False)])
def test_another_exporter_may_leave_out_a_by_product(lost, passed, good: Path, tmp_path: Path):
    def edit(model: onnx.ModelProto) -> None:
        without(lost)(model)
        model.producer_name = "pytorch"

    path = edited(good, tmp_path / "m.onnx", edit)
    check = verify(path, plain.network(), plain.tokens())["interface"]
    assert check.passed is passed
    assert f"lacks the network's output {lost}" in check.detail


# Shapes


def fixed_to(rows: int, length: int | None = None) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = rows
            if length is not None:
                value.type.tensor_type.shape.dim[1].dim_value = length

    return edit


def test_only_shapes_that_ran_are_claimed(good: Path, tmp_path: Path):
    path = edited(good, tmp_path / "m.onnx", fixed_to(3, 9))
    report = verify(path, plain.network(), plain.tokens())
    assert report["parity"].numbers["shapes"] == ["3x9"]
    assert report["shapes"].passed is None
    assert "axis 0 of input_ids to 3" in report["shapes"].detail
    assert "axis 1 of attention_mask to 9" in report["shapes"].detail
    assert "no other size was run" in report["shapes"].detail


def test_an_axis_that_the_export_fixed_is_told_as_such(good: Path, tmp_path: Path):
    def edit(model: onnx.ModelProto) -> None:
        fixed_to(3)(model)
        note = next(e for e in model.metadata_props if e.key == "lrcompress.fixed_axes")
        note.value = '{"input_ids": [0], "attention_mask": [0]}'

    check = verify(edited(good, tmp_path / "m.onnx", edit), plain.network(), plain.tokens())
    assert check["shapes"].passed is True
    assert "fixed by the export" in check["shapes"].detail


@pytest.mark.parametrize("rows", [2**31, 2 * 10**5, 0])
def test_a_batch_that_cannot_be_made_up_is_refused(rows: int, good: Path, tmp_path: Path):
    path = edited(good, tmp_path / "m.onnx", fixed_to(rows))
    with pytest.raises(VerifyError, match="input_ids") as caught:
        verify(path, plain.network(), plain.tokens())
    assert "\n" not in str(caught.value)


def test_bench_refuses_it_too(good: Path, tmp_path: Path):
    path = edited(good, tmp_path / "m.onnx", fixed_to(2**31, 9))
    with pytest.raises(DataError, match="2147483648 x 9"):
        bench([BenchTarget("m", path)], BenchSettings(runs=1, warmup=0, measure_memory=False))


# Notes


@pytest.mark.parametrize(
    "value", ["{", "[1, 2]", '{"sequence": 5}', '{"sequence": ["a", "b"]}', "[" * 10_000]
)
def test_malformed_notes_are_ignored_with_a_word(value: str, good: Path, tmp_path: Path):
    def edit(model: onnx.ModelProto) -> None:
        next(e for e in model.metadata_props if e.key.endswith("axis_limits")).value = value

    report = verify(edited(good, tmp_path / "m.onnx", edit), plain.network(), plain.tokens())
    assert report.ok
    assert "malformed and ignored: its axis_limits" in report["shapes"].detail


def test_a_budget_that_was_not_checked_says_why(good: Path):
    options = VerifyOptions(budget=BudgetFacts(why_none="not checked, as it is another's"))
    check = verify(good, plain.network(), plain.tokens(), options)["budget"]
    assert check.passed is None
    assert check.detail.startswith("not checked, as it is another's")


def test_control_characters_in_names_are_escaped(good: Path, tmp_path: Path):
    def edit(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name.startswith("up.down.weight"))
        old, weight.name = weight.name, "\x1b[31mred\n"
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)
        weight.raw_data = values.tobytes()
        for node in model.graph.node:
            node.input[:] = [weight.name if name == old else name for name in node.input]

    report = verify(edited(good, tmp_path / "m.onnx", edit), plain.network(), plain.tokens())
    assert report["values"].passed is False
    for check in report.checks:
        assert check.detail.isprintable()


# Broken on purpose


def named(change: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        shaped = next(tensor for tensor in graph.initializer if tensor.dims)
        weight = next(tensor for tensor in graph.initializer if tensor.data_type == 1)
        if change == "negative":
            shaped.dims[0] = -5
        elif change == "enormous":
            shaped.dims[0] = 2**40
        elif change == "half":
            weight.data_type = onnx.TensorProto.FLOAT16
        elif change == "unknown dtype":
            weight.data_type = 99
        elif change == "cycle":
            graph.node[0].input[0] = graph.node[-1].output[0]
        elif change == "opset":
            model.opset_import[0].version = 999
        elif change == "no opset":
            del model.opset_import[:]
        elif change == "no nodes":
            del graph.node[:]
        elif change == "no outputs":
            del graph.output[:]
        elif change == "no inputs":
            del graph.input[:]
        elif change == "twice":
            graph.initializer.append(graph.initializer[0])

    return edit


@pytest.mark.parametrize(
    "change",
    ["negative", "enormous", "half", "unknown dtype", "cycle", "opset", "no opset", "no nodes",
     "no outputs", "no inputs", "twice"],
)  # fmt: skip
def test_a_broken_graph_never_passes(change: str, good: Path, tmp_path: Path):
    path = edited(good, tmp_path / "m.onnx", named(change))
    assert said_of(path) != "passed"


@pytest.mark.parametrize("key", ["location", "offset", "length"])
@pytest.mark.parametrize("value", ["../model.onnx.data", "/dev/zero", "", "-1", "99999999999999"])
def test_weights_elsewhere_are_never_read(key: str, value: str, beside: Path, tmp_path: Path):
    folder = tmp_path / "inner"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "model.onnx.data").write_bytes(beside.with_name("model.onnx.data").read_bytes())

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value

    assert said_of(edited(beside, folder / "model.onnx", edit)) != "passed"


def said_of(path: Path) -> str:
    """ "passed", or one printable line."""
    try:
        report = verify(path, plain.network(), plain.tokens())
        said = "passed" if report.ok else "; ".join(check.detail for check in report.failed)
    except LrcompressError as error:
        said = str(error)
    assert said.isprintable()
    return said


def test_flipped_bits_end_in_one_line_or_in_the_same_numbers(good: Path, tmp_path: Path):
    whole = good.read_bytes()
    fed = {name: tensor.numpy() for name, tensor in plain.tokens().items()}
    wanted = outputs(good, fed)
    random = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    passed = 0
    for _ in range(12):
        flipped = bytearray(whole)
        for place in random.integers(len(flipped), size=random.choice([1, 3])):
            flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        if said_of(path) == "passed":
            passed += 1
            for ours, theirs in zip(wanted, outputs(path, fed), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert passed < 12


def outputs(path: Path, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    from lrcompress.export.session import open_session

    return open_session(path).run(None, fed)


def test_a_file_that_is_cut_off_is_refused(good: Path, tmp_path: Path):
    whole = good.read_bytes()
    for kept in np.linspace(0, len(whole) - 1, 7).astype(int):
        (tmp_path / "m.onnx").write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=r"m\.onnx"):
            verify(tmp_path / "m.onnx", plain.network(), plain.tokens())
