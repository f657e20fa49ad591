"""Sessions that refuse to run elsewhere, placement, and fair measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import FLOAT, INT64, graph, linear, lookup
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import helper

from lrcompress.errors import DataError, LrcompressError, ModelError, VerifyError
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchSettings, BenchTarget
from lrcompress.export.memory import peak_memory
from lrcompress.export.placement import NodePlacement, PlacementReport, placement, try_provider
from lrcompress.export.random_feeds import GraphInput, graph_inputs, id_limits, make_feed
from lrcompress.export.session import ProviderUnavailable, file_bytes, open_session
from lrcompress.export.timing import bound, latency_ratio, take_turns

QUICK = BenchSettings(
    batches=(1, 2), lengths=(3,), runs=3, warmup=1, threads=1, measure_memory=False
)


# --- sessions -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_unreadable_onnx_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    path = linear(tmp_path / "model.onnx")
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage]
    )
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_provider_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such ONNX file"):
        open_session(tmp_path / "nowhere.onnx")
    with pytest.raises(VerifyError, match="choose one of cpu, cuda, tensorrt"):
        open_session(linear(tmp_path / "model.onnx"), "npu")  # type: ignore[arg-type]


def _cuda_works() -> bool:
    try:
        return try_provider("cuda") == "CUDAExecutionProvider"
    except LrcompressError:
        return False


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_gpu_session_never_falls_back_silently(
    tmp_path: Path, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if _cuda_works():
        pytest.skip("this machine has a working CUDA provider")
    capfd.readouterr()
    with pytest.raises(ProviderUnavailable, match="lrcompress doctor") as caught:
        open_session(linear(tmp_path / "m.onnx"), provider)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # ONNX Runtime's own complaints stay inside


def test_optimized_graph_is_written(tmp_path: Path) -> None:
    open_session(linear(tmp_path / "m.onnx"), optimized_path=tmp_path / "optimized.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["MatMul"]


def test_file_size_counts_external_data_and_misses_it(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", 64, 64)
    onnx.save(
        onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.data",
        size_threshold=0,
    )  # fmt: skip
    assert file_bytes(tmp_path / "e.onnx") >= 64 * 64 * 4
    assert file_bytes(tmp_path / "e.onnx") == sum(
        (tmp_path / name).stat().st_size for name in ("e.onnx", "e.data")
    )
    (tmp_path / "e.data").unlink()
    with pytest.raises(ModelError, match=r"e\.data is missing"):
        file_bytes(tmp_path / "e.onnx")
    with pytest.raises(ModelError, match=r"e\.onnx"):
        open_session(tmp_path / "e.onnx")


# --- placement ------------------------------------------------------------------------------


def _shape_model(path: Path) -> Path:
    """Reshape to (batch, -1) by way of Shape, Gather, Concat; then a Relu without a name."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "first"], ["size"], name="size"),
        helper.make_node("Concat", ["size", "rest"], ["target"], name="target", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["row"], name="row"),
        helper.make_node("Gather", ["row", "first"], ["picked"], name="picked"),
        helper.make_node("Relu", ["picked"], ["y"]),
    ]
    weights = {"first": np.array([0]), "rest": np.array([-1])}
    x = {"x": (FLOAT, ["batch", 2, 2])}
    onnx.save(graph(nodes, x, {"y": (FLOAT, [1, "n"])}, weights), path)
    return path


def test_only_nodes_that_compute_shapes_may_stay_on_the_cpu(tmp_path: Path) -> None:
    """The same operator, Gather, is a shape node in one place and the network's in another."""
    session = open_session(_shape_model(tmp_path / "m.onnx"), record_assignment=True)
    report = placement(session)
    assert report.counts == {"CPUExecutionProvider": 6}
    assert report.compute_nodes_off("cpu") == ()
    off = [(node.name, node.operator) for node in report.compute_nodes_off("cuda")]
    assert off == [("row", "Reshape"), ("picked", "Gather"), ("", "Relu")]


def test_placement_needs_a_record(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="record_assignment"):
        placement(open_session(linear(tmp_path / "m.onnx")))


def test_tensorrt_may_hand_nodes_to_cuda_but_not_all_of_them() -> None:
    def on(*providers: str) -> PlacementReport:
        nodes = (NodePlacement(f"n{i}", "", "Relu", p, False) for i, p in enumerate(providers))
        return PlacementReport(tuple(nodes))

    rt, cuda, cpu = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU"))
    assert on(rt, cuda).compute_nodes_off("tensorrt") == ()
    assert [n.name for n in on(rt, cuda, cpu).compute_nodes_off("tensorrt")] == ["n2"]
    assert len(on(cuda, cuda).compute_nodes_off("tensorrt")) == 2
    assert on(cuda).compute_nodes_off("cuda") == ()


def test_one_product_runs_on_the_cpu() -> None:
    assert try_provider("cpu") == "CPUExecutionProvider"


@pytest.mark.gpu
def test_one_product_runs_on_cuda() -> None:
    assert try_provider("cuda") == "CUDAExecutionProvider"


# --- inputs ---------------------------------------------------------------------------------


def test_inputs_suit_an_encoder(tmp_path: Path) -> None:
    path = lookup(tmp_path / "m.onnx", vocabulary=25)
    inputs = graph_inputs(open_session(path).get_inputs(), id_limits(path))
    feed = make_feed(inputs, 2, 300, seed=0)
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (2, 300),
        "attention_mask": (2, 300),
        "token_type_ids": (2, 300),
    }
    assert 0 <= feed["input_ids"].min() < feed["input_ids"].max() < 25  # the table has 25 rows
    assert (feed["attention_mask"] == 1).all()
    assert (feed["token_type_ids"] == 0).all()


def test_ids_stay_below_a_hundred_where_the_table_is_larger(tmp_path: Path) -> None:
    path = lookup(tmp_path / "m.onnx", vocabulary=5000)
    inputs = graph_inputs(open_session(path).get_inputs(), id_limits(path))
    assert make_feed(inputs, 8, 100, seed=0)["input_ids"].max() < 100


@given(batch=st.integers(1, 4), length=st.integers(1, 9), seed=st.integers(0, 99))
@example(batch=3, length=6, seed=88)  # one that rounds twice
def test_same_name_gets_the_same_values_in_every_graph(batch: int, length: int, seed: int) -> None:
    x = GraphInput("x", "float32", ("batch", "sequence", 3))
    half = GraphInput("x", "float16", ("batch", "sequence", 3))
    other = GraphInput("a", "int64", ("batch", "sequence"))
    alone = make_feed([x], batch, length, seed)["x"]
    beside = make_feed([other, half], batch, length, seed)["x"]
    assert alone.shape == (batch, length, 3)
    np.testing.assert_array_equal(alone.astype("float16"), beside)


def test_image_dimensions_come_from_the_graph_and_unknown_ones_are_refused() -> None:
    image = GraphInput("pixels", "float32", ("batch", 1, 28, 28))
    assert make_feed([image], 3, None, seed=0)["pixels"].shape == (3, 1, 28, 28)
    with pytest.raises(DataError, match=r"batch is fixed to 2"):
        make_feed([GraphInput("pixels", "float32", (2, 4))], 3, None, seed=0)
    with pytest.raises(DataError, match="axis 2"):
        make_feed([GraphInput("pixels", "float32", ("batch", 1, "height", 28))], 3, 7, seed=0)


# --- timing ---------------------------------------------------------------------------------


def test_models_take_turns_and_change_who_goes_first() -> None:
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b"), lambda: order.append("c")]
    times = take_turns(calls, runs=4, warmup=1, advance=lambda: order.append("|"))
    assert "".join(order) == "abc|abc|cba|abc|cba|"
    assert times.shape == (3, 4)
    assert (times > 0).all()


@given(
    st.lists(st.floats(0.1, 100), min_size=3, max_size=20),
    st.floats(0.1, 10),
)
def test_ratio_is_untouched_by_what_slows_both_models(slowness: list[float], ratio: float) -> None:
    reference = np.array(slowness)
    # 8 roundings of a float64 are far below 1e-12
    assert latency_ratio(ratio * reference, reference) == pytest.approx((ratio,) * 3, rel=1e-12)


def test_interval_holds_the_ratio_and_widens_with_noise() -> None:
    random = np.random.default_rng(0)
    widths = []
    for noise in (0.01, 0.3):
        times, reference = 2 + noise * random.random((2, 50))
        ratio, low, high = latency_ratio(times, reference)
        assert low <= ratio <= high
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_bound_inputs_give_what_run_gives(tmp_path: Path) -> None:
    session = open_session(linear(tmp_path / "m.onnx"))
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)}
    binding = bound(session, feed, "cpu")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], session.run(None, feed)[0])


# --- the whole bench ------------------------------------------------------------------------


def test_bench_fills_every_cell_and_names_what_it_ran_on(tmp_path: Path) -> None:
    targets = [
        BenchTarget("dense", linear(tmp_path / "dense.onnx", 64, 64)),
        BenchTarget("half", linear(tmp_path / "half.onnx", 64, 64, dtype=np.float16)),
    ]
    report = bench(targets, QUICK)
    cells = [(one.target, one.batch, one.length) for one in report.latencies]
    assert sorted(cells) == [(t, b, 3) for t in ("dense", "half") for b in (1, 2)]
    for one in report.latencies:
        assert 0 < one.p50_ms <= one.p90_ms
        assert one.rows_per_s == pytest.approx(one.batch * 3 / one.p50_ms * 1e3)
    assert [(r.target, r.reference, r.batch) for r in report.ratios] == [
        ("half", "dense", 1),
        ("half", "dense", 2),
    ]
    assert all(r.low <= r.latency_ratio <= r.high for r in report.ratios)
    assert report.row == "token"
    assert report.execution_provider == "CPUExecutionProvider"
    assert report.device
    document = json.loads(json.dumps(report.to_json()))
    assert document["schema_version"] == 1
    assert document["footprints"][1]["file_bytes"] == targets[1].path.stat().st_size


def test_graph_without_a_length_is_timed_once_a_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["y"], name="relu")]
    image = {"image": (FLOAT, ["batch", 1, 4, 4])}
    path = tmp_path / "m.onnx"
    onnx.save(graph(nodes, image, {"y": (FLOAT, ["batch", 1, 4, 4])}), path)
    report = bench([BenchTarget("m", path)], QUICK)
    assert [(one.batch, one.length) for one in report.latencies] == [(1, None), (2, None)]
    assert report.row == "example"


def test_given_inputs_are_used_and_missing_ones_named(tmp_path: Path) -> None:
    path = lookup(tmp_path / "m.onnx", vocabulary=1000)
    seen: list[tuple[int, int | None]] = []

    def maker(
        inputs: object, batch: int, length: int | None
    ) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        seen.append((batch, length))
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: np.full((batch, length or 0), 999) for name in names}

    bench([BenchTarget("m", path)], QUICK, input_maker=maker)
    assert set(seen) == {(1, 3), (2, 3)}
    with pytest.raises(DataError, match="lack input_ids"):
        bench([BenchTarget("m", path)], QUICK, input_maker=lambda *_: {})


def test_failing_run_is_one_line_with_the_shapes(tmp_path: Path) -> None:
    def too_large(
        inputs: object, batch: int, length: int | None
    ) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: np.full((batch, length or 0), 10) for name in names}

    path = lookup(tmp_path / "m.onnx", vocabulary=5)
    with pytest.raises(VerifyError, match=r"^m: does not run with input_ids \[1, 3\]") as caught:
        bench([BenchTarget("m", path)], QUICK, input_maker=too_large)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        BenchSettings(batches=()),
        BenchSettings(batches=(0,)),
        BenchSettings(lengths=(-1,)),
        BenchSettings(runs=0),
    ],
)
def test_nonsense_settings_are_refused(tmp_path: Path, settings: BenchSettings) -> None:
    with pytest.raises(DataError, match=r"^bench: "):
        bench([BenchTarget("m", linear(tmp_path / "m.onnx"))], settings)


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    target = BenchTarget("m", linear(tmp_path / "m.onnx"))
    with pytest.raises(DataError, match="under a different name"):
        bench([target, target], QUICK)


def test_input_dtype_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)]
    ports = {"x": (onnx.TensorProto.BFLOAT16, ["batch"])}
    onnx.save(graph(nodes, ports, {"y": (FLOAT, ["batch"])}), tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"tensor\(bfloat16\)"):
        bench([BenchTarget("m", tmp_path / "m.onnx")], QUICK)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells peak memory")
def test_peak_memory_follows_the_weights(tmp_path: Path) -> None:
    """Each weight is 16 MiB or 64 MiB; the session holds it at least once."""
    feed = {"x": np.ones((1, 1, 2048), np.float32)}
    peaks = []
    for out_features in (2048, 8192):
        path = linear(tmp_path / f"{out_features}.onnx", out_features, 2048)
        peak = peak_memory(path, "cpu", feed, threads=1).resident_bytes
        assert peak is not None
        assert peak >= 2048 * out_features * 4
        peaks.append(peak)
    assert peaks[1] - peaks[0] >= 40 * 2**20


def test_memory_of_an_unreadable_model_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"hello")
    with pytest.raises(VerifyError, match="memory cannot be measured") as caught:
        peak_memory(tmp_path / "m.onnx", "cpu", {"x": np.ones(1, np.float32)})
    assert "\n" not in str(caught.value)


def test_integer_input_that_indexes_no_table_keeps_the_safe_range(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["n"], ["y"], to=FLOAT)]
    onnx.save(graph(nodes, {"n": (INT64, ["batch"])}, {"y": (FLOAT, ["batch"])}), tmp_path / "m")
    inputs = graph_inputs(open_session(tmp_path / "m").get_inputs(), id_limits(tmp_path / "m"))
    assert make_feed(inputs, 500, None, seed=0)["n"].max() == 99


@pytest.mark.gpu
def test_bench_on_cuda_measures_device_memory(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", 2048, 2048)
    settings = BenchSettings(batches=(1,), lengths=(8,), runs=3, warmup=1, provider="cuda")
    report = bench([BenchTarget("m", path)], settings)
    assert report.execution_provider == "CUDAExecutionProvider"
    assert (report.footprints[0].peak_device_bytes or 0) > 2048 * 2048 * 4
