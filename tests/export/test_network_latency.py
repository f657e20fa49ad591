"""Times of a network's layers: read from ONNX Runtime's profile and attributed to layers."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.export import network_latency
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.network_latency import TimingSettings, cut, feed_of, time_network
from lrcompress.export.node_times import LayerTimes, layers_of_nodes, node_times, split_times
from lrcompress.export.session import open_session
from lrcompress.layers import LayerSpec, describe


def event(name: str, microseconds: float, category: str = "Node") -> dict[str, object]:
    return {"cat": category, "name": name, "dur": microseconds}


def test_the_shortest_run_of_a_node_counts() -> None:
    profile = [
        event("model_run", 99, "Session"),
        *(event("a_kernel_time", time) for time in (30, 10, 20)),
        *(event("a_fence_before", 1) for _ in range(3)),
        *(event("b_kernel_time", time) for time in (5, 5, 4)),
    ]
    assert node_times(profile, 3) == pytest.approx({"a": 0.010, "b": 0.004})


def test_a_node_in_a_loop_counts_all_its_repetitions() -> None:
    profile = [event("a_kernel_time", time) for time in (1, 2, 3, 4, 1, 1)]
    assert node_times(profile, 2) == pytest.approx({"a": 0.006})
    assert node_times(profile, 3) == pytest.approx({"a": 0.002})


def linear(name: str, out: int = 4, inner: int = 4) -> LayerSpec:
    return LayerSpec(name, "linear", out, inner, 1, bias=False)


def test_times_are_split_into_layers_and_the_rest() -> None:
    found = split_times(
        {"x": 1.0, "y": 2.0, "z": 4.0, "w": 8.0},
        {"x": "a", "y": "a", "z": "b"},
        [linear("a"), linear("b"), linear("c")],
    )
    assert found == LayerTimes({"a": 3.0, "b": 4.0}, 8.0, ("c",))


def test_a_layer_that_was_not_found_takes_the_time_of_its_flops() -> None:
    layers = [linear("a"), linear("b", 8), linear("c", 8)]
    found = LayerTimes({"a": 2.0}, 7.0, ("b", "c"))
    layers_ms, rest_ms = network_latency._completed(found, layers)
    assert layers_ms == {"a": 2.0, "b": 4.0, "c": 3.0}  # no more than the rest holds
    assert rest_ms == 0.0


class Mixed(nn.Module):
    """A convolution, an embedding with a tied head, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 32, 3)
        self.plain = nn.Linear(32, 16)
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        seen = torch.relu(self.convolution(pixels)).mean((2, 3))
        out: Tensor = self.head(self.table(ids) + self.plain(seen)[:, None])
        return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, dict[str, Tensor], Path]:
    torch.manual_seed(0)
    module = Mixed().eval()
    batch = {"pixels": torch.randn(4, 8, 9, 9), "ids": torch.randint(0, 50, (4, 6))}
    path = tmp_path_factory.mktemp("mixed") / "dense.onnx"
    export_onnx(module, batch, path)
    return module, batch, path


def test_every_layer_is_found_in_the_optimised_graph(
    exported: tuple[nn.Module, dict[str, Tensor], Path], tmp_path: Path
) -> None:
    """The kernel of the convolution is stored in another order there, under another name."""
    module, _, path = exported
    layers = describe(module).layers
    open_session(path, optimized_path=tmp_path / "optimised.onnx")
    source, optimised = (onnx.load(one).graph for one in (path, tmp_path / "optimised.onnx"))
    owners = layers_of_nodes(source, optimised, layers)
    assert set(owners.values()) == {layer.name for layer in layers}
    kinds: dict[str, set[str]] = {}
    for node in optimised.node:
        if node.name in owners:
            kinds.setdefault(owners[node.name], set()).add(node.op_type)
    assert any("Conv" in kind for kind in kinds["convolution"])
    assert {"Gather"} < kinds["table"]  # and the product of its head


def test_a_network_is_timed_in_its_layers_and_the_rest(
    exported: tuple[nn.Module, dict[str, Tensor], Path],
) -> None:
    module, batch, path = exported
    layers = describe(module).layers
    found = time_network(path, batch, layers, TimingSettings(rows=12, threads=1))
    assert found is not None
    assert set(found.layers_ms) == {layer.name for layer in layers}
    assert found.total_ms > found.rest_ms > 0
    assert "on cpu, 1 threads" in found.measured_at


def test_a_gpu_is_not_timed_by_nodes(
    exported: tuple[nn.Module, dict[str, Tensor], Path],
) -> None:
    _, batch, path = exported
    assert time_network(path, batch, [], TimingSettings("cuda")) is None


def test_an_example_is_cut_to_about_the_asked_rows() -> None:
    texts = {"ids": torch.zeros(16, 32, dtype=torch.long)}
    assert [len(cut(texts, rows)["ids"]) for rows in (1, 128, 2048)] == [1, 4, 16]
    images = {"pixels": torch.zeros(16, 3, 8, 8)}
    assert len(cut(images, 5)["pixels"]) == 5
    whole = {"ids": torch.zeros(16, 32, dtype=torch.long), "scale": torch.zeros(())}
    assert cut(whole, 1) is whole


def test_a_batch_without_an_input_of_the_graph_is_refused(
    exported: tuple[nn.Module, dict[str, Tensor], Path],
) -> None:
    _, batch, path = exported
    with pytest.raises(DataError, match="takes an input ids"):
        feed_of(open_session(path), {"pixels": batch["pixels"]})


def test_two_graphs_are_compared_by_their_shortest_runs(
    exported: tuple[nn.Module, dict[str, Tensor], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    _, batch, path = exported
    times = np.array([[9.0, 2.0, 3.0], [9.0, 8.0, 1.0]])
    monkeypatch.setattr(network_latency, "take_turns", lambda *_, **__: times)
    assert network_latency.latency_over(path, path, batch, TimingSettings()) == 0.5
