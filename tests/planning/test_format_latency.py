"""Latencies of number formats: what a table says of each, and that it can be measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from latency_tables import SPEC, measurement, table

from lrcompress.errors import DataError
from lrcompress.export import timing
from lrcompress.export.calibrate import CalibrationSettings, calibrate_latency
from lrcompress.export.format_graphs import copies_of, input_name, layer_graph
from lrcompress.number_formats import FORMATS, parse_format
from lrcompress.planning.latency import (
    Latencies,
    LatencyTable,
    latency_table,
    table_from_json,
    table_to_json,
)
from lrcompress.planning.weight_formats import format_shares, timed_name
from lrcompress.structures import Blast, Dense, LowRank, Quantised, Structure
from lrcompress_cli.main import main


def stored(structure: Structure, *formats: str) -> Structure:
    return Quantised(structure, tuple(map(parse_format, formats)))


def dense_in(kind: str, ratio: float, **changes: object) -> Any:
    whole = {"structure": "dense", "blocks": 0, "kept": 1.0, "format": kind}
    return measurement("", ratio, **{**whole, **changes})


def ratio_of(held: LatencyTable, structure: Structure) -> float:
    return Latencies(held, "cpu", 128).ratio(structure, SPEC)


def test_a_quantised_dense_layer_takes_the_time_of_its_format() -> None:
    held = table(dense_in("int8-dynamic", 0.3), dense_in("int4/32", 0.9))
    for kind, ratio in (("int8-dynamic", 0.3), ("int4/32", 0.9)):
        assert ratio_of(held, stored(Dense(), kind)) == pytest.approx(ratio)
    assert ratio_of(held, Dense()) == 1.0


def test_a_cast_weight_takes_the_time_of_a_float32_one() -> None:
    """Its cast is folded when the session is opened."""
    half = measurement("", 0.6, structure="low_rank", blocks=0, kept=0.5)
    for kind in ("fp16", "bf16", "fp32"):
        assert ratio_of(table(half), stored(Dense(), kind)) == 1.0
        assert ratio_of(table(half), stored(LowRank(16), kind)) == pytest.approx(0.6)


def test_zero_points_take_no_time() -> None:
    held = table(dense_in("int4/32", 0.9))
    assert ratio_of(held, stored(Dense(), "uint4/32")) == pytest.approx(0.9)
    assert timed_name(parse_format("uint2/64")) == "int2/64"


def test_the_nearest_block_size_counts_most() -> None:
    held = table(dense_in("int4/16", 1.0), dense_in("int4/256", 0.5))
    ratios = [ratio_of(held, stored(Dense(), f"int4/{block}")) for block in (32, 64, 128)]
    assert 1.0 > ratios[0] > ratios[1] > ratios[2] > 0.5


def test_factors_in_two_formats_take_the_mean_of_their_times() -> None:
    """Both factors of a square layer hold as many parameters."""
    low = {"structure": "low_rank", "kept": 0.5}
    held = table(dense_in("int8-dynamic", 0.2, **low), dense_in("int4/32", 0.6, **low))
    mixed = stored(LowRank(16), "int4/32", "int8-dynamic")
    assert format_shares(mixed, SPEC) == {"int4/32": 0.5, "int8-dynamic": 0.5}
    assert ratio_of(held, mixed) == pytest.approx(0.4)
    assert format_shares(LowRank(16), SPEC) == {"fp32": 1.0}


def test_a_quantised_structure_that_was_not_timed_takes_the_time_of_its_float32_factors() -> None:
    blast = Blast(16, blocks=4)
    held = table(measurement("", 0.7), dense_in("int4/32", 0.2))
    assert ratio_of(held, stored(blast, "int4/32")) == pytest.approx(0.7, rel=1e-3)
    alone = stored(LowRank(8), "int4/32")
    assert ratio_of(held, alone) == LowRank(8).flops_per_row(SPEC) / SPEC.flops_per_row


def test_a_format_slower_than_dense_is_known_to_be() -> None:
    latencies = Latencies(table(dense_in("int2/32", 1.8), dense_in("int4/32", 0.9)), "cpu", 128)
    assert latencies.is_slower(stored(Dense(), "int2/32"), SPEC)
    assert not latencies.is_slower(stored(Dense(), "int4/32"), SPEC)
    assert not latencies.is_slower(LowRank(8), SPEC)


def test_a_table_holds_formats_and_refuses_unknown_ones() -> None:
    held = table(dense_in("int4/32", 0.5), measurement("columns", 0.75))
    text = table_to_json(held, {})
    assert table_from_json(text, "t").measurements == held.measurements
    entries = json.loads(text)["measurements"]
    assert [entry.get("format") for entry in entries] == ["int4/32", None]
    with pytest.raises(DataError, match=r'measurements\[0\]\.format: format "int4/33"'):
        table_from_json(text.replace("int4/32", "int4/33"), "t")


def test_the_table_that_ships_times_every_format_at_all_numbers_of_rows() -> None:
    held = [it for it in latency_table().measurements if it.format != "fp32"]
    assert {it.rows for it in held} == {1, 16, 128, 1024}
    names = {it.format.partition("/")[0] for it in held if it.structure == "dense"}
    assert names == {timed_name(kind()).partition("/")[0] for kind in FORMATS.values()} - {"fp32"}
    assert {it.structure for it in held} == {"dense", "low_rank"}


def dequantised(matrix: tuple[int, int], model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    """(out, in) of the single MatMulNBits of 8 bits in a graph."""
    held = {it.name: onnx.numpy_helper.to_array(it) for it in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    codes, scales = (held[name].astype(np.float64) for name in node.input[1:3])
    return ((codes - 128) * scales[..., None]).reshape(matrix[0], -1)[:, : matrix[1]]


def test_a_graph_to_be_timed_computes_the_product_of_its_codes() -> None:
    matrix = (24, 48)
    model = layer_graph([matrix], [parse_format("int8/32")], copies=2, accuracy=0)
    rows = np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {input_name(0): rows, input_name(1): rows})
    assert [one.shape for one in found] == [(5, 24)] * 2
    alone = layer_graph([matrix], [parse_format("int8/32")], copies=1, accuracy=0)
    expected = rows @ dequantised(matrix, alone).T
    # float32 products of 48 terms
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "uint2"])
def test_every_format_has_a_graph_that_runs(kind: str) -> None:
    factors, one = [(12, 40), (40, 12)], FORMATS[kind]()
    model = layer_graph(factors, [one, one], copies=1)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {input_name(0): np.ones((3, 40), np.float32)})
    assert found.shape == (3, 40)
    assert np.isfinite(found).all()


def test_many_copies_of_a_small_layer_fill_a_graph() -> None:
    assert copies_of((384, 384)) == 16
    assert copies_of((1536, 768)) == 3
    assert copies_of((8192, 8192)) == 1


def test_one_thread_on_the_processor_is_timed_by_its_own_time() -> None:
    assert timing.clock_for("cpu", 1) is timing.thread_time_ns
    for provider, threads in (("cpu", 2), ("cpu", None), ("cuda", 1)):
        assert timing.clock_for(provider, threads) is timing.wall_clock  # type: ignore[arg-type]


def test_turns_are_timed_by_the_given_clock() -> None:
    now = 0

    def takes(milliseconds: int) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += milliseconds * 10**6

        return call

    found = timing.take_turns(
        [takes(3), takes(5)], runs=4, warmup=1, advance=lambda: None, clock=lambda: now
    )
    np.testing.assert_array_equal(found, [[3.0] * 4, [5.0] * 4])


@pytest.mark.slow
def test_calibration_times_dense_and_low_rank_layers_in_each_format() -> None:
    torch.manual_seed(0)
    settings = CalibrationSettings(
        structures=("low_rank",),
        shapes=((64, 64),),
        rows=(1, 4),
        runs=2,
        formats=("int8-dynamic", "int4/32"),
    )
    found = calibrate_latency(settings).measurements
    kinds = {(it.structure, it.format) for it in found}
    assert kinds == {
        ("low_rank", "fp32"),
        ("low_rank", "int8-dynamic"),
        ("low_rank", "int4/32"),
        ("dense", "int8-dynamic"),
        ("dense", "int4/32"),
    }
    assert {it.kept for it in found if it.structure == "dense"} == {1.0}
    assert all(it.ratio > 0 for it in found)


def test_a_format_that_is_none_is_refused_by_the_command() -> None:
    result = CliRunner().invoke(main, ["calibrate-latency", "--formats", "int5", "--sizes", "16"])
    assert result.exit_code == 2
    assert '--formats: format "int5" is not one of' in result.stderr
