"""Latencies of structures: what a table says, who heeds it, and that it can be measured again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from click.testing import CliRunner
from latency_tables import BLAST, SPEC, measurement, table
from torch import nn

from lrcompress.errors import DataError, ExportError
from lrcompress.export import calibrate
from lrcompress.export.calibrate import (
    CalibrationSettings,
    calibrate_latency,
    linear_layer,
    not_timed,
    structures_to_time,
)
from lrcompress.export.forms import FormChoice, choose_forms_, forms_of, use_form_
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.layers import describe
from lrcompress.metrics import Whitening
from lrcompress.planning.choices import layer_choices
from lrcompress.planning.latency import (
    Latencies,
    LatencyTable,
    latency_table,
    table_from_json,
    table_to_json,
)
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.structures import STRUCTURES, Blast, Dense, LowRank
from lrcompress_cli.main import main


def test_a_structure_that_was_measured_is_estimated_by_its_fastest_form() -> None:
    both = table(measurement("broadcast", 0.9), measurement("matmuls", 0.7))
    best = both.best(BLAST, SPEC, provider="cpu", rows=128)
    assert best is not None
    assert best.form == "matmuls"
    assert best.ratio == pytest.approx(0.7, rel=1e-3)  # shares are rounded to 1/1000


def test_an_estimate_lies_between_its_neighbours_and_nearer_to_the_nearer() -> None:
    near = table(measurement("", 0.5, rows=64), measurement("", 2.0, rows=1024))
    best = near.best(BLAST, SPEC, provider="cpu", rows=128)
    assert best is not None
    assert 0.5 < best.ratio < 1.0


@pytest.mark.parametrize(
    "other",
    [
        {"provider": "cuda"},
        {"structure": "monarch"},
        {"blocks": 8},
        {"rows": 2**20},
    ],
)
def test_what_was_not_measured_has_no_estimate(other: dict[str, object]) -> None:
    assert table(measurement("", 3.0, **other)).best(BLAST, SPEC, provider="cpu", rows=128) is None
    assert table(measurement("", 3.0)).best(Dense(), SPEC, provider="cpu", rows=128) is None


@pytest.fixture(scope="module")
def explored() -> Profile:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    data = [{"input": torch.randn(16, 64)} for _ in range(4)]
    options = ProfileOptions(structures=("low_rank", "blast"), trials=False)
    found = profile(module, data, options)
    assert any(layer.curves for layer in found.layers)
    return found


def slow(tmp_path: Path, ratio: float) -> str:
    rows = [
        measurement("columns", ratio, blocks=blocks, rows=rows)
        for blocks in (2, 4, 8, 16)
        for rows in (1, 128)
    ]
    path = tmp_path / "table.json"
    path.write_text(table_to_json(table(*rows), {}))
    return str(path)


def test_a_flops_budget_has_no_choice_that_measures_slower_than_dense(
    explored: Profile, tmp_path: Path
) -> None:
    layer = explored.layers[0]
    latencies = Latencies(latency_table(slow(tmp_path, 10.0)), "cpu", 128)  # whatever its size
    free = layer_choices(layer, explored.metric, latencies=latencies)
    left = layer_choices(layer, explored.metric, latencies=latencies, refuse_slower=True)
    assert any(isinstance(choice.structure, Blast) for choice in free)
    assert not any(isinstance(choice.structure, Blast) for choice in left)
    assert any(isinstance(choice.structure, LowRank) for choice in left)


def test_a_share_that_was_not_measured_keeps_the_time_over_that_share() -> None:
    half = LatencyTable((measurement("", 0.6, kept=0.5),))
    for kept in (0.1, 0.25, 1.0):
        best = half.best_form("blast", 4, (64, 64), kept, provider="cpu", rows=128)
        assert best is not None
        assert best.ratio == pytest.approx(1.2 * kept)


def test_a_latency_budget_counts_the_time_of_the_table(explored: Profile, tmp_path: Path) -> None:
    """The dense layers' own FLOPs, times each structure's ratio; what was not measured by FLOPs."""
    path = tmp_path / "table.json"
    low_rank = measurement("", 0.8, structure="low_rank", blocks=0, kept=0.5)
    path.write_text(table_to_json(table(low_rank), {}))
    options = PlanOptions(structures=("low_rank",), latency_table=str(path))
    decided = plan(explored, "latency=70%", options)
    rest = decided.dense_flops_per_example
    for layer in explored.layers:
        rest -= round(Dense().flops_per_row(layer.spec) * layer.rows_per_example)
    cost = rest
    for planned in decided.layers:
        row = explored[planned.name]
        dense = Dense().flops_per_row(row.spec) * row.rows_per_example
        kept = planned.structure.weight_params(row.spec) / row.spec.weight_params
        cost += dense * (1 if isinstance(planned.structure, Dense) else 1.6 * kept)
    assert decided.cost == pytest.approx(cost, rel=1e-2)  # shares are rounded to 1/1000
    assert decided.limit == int(0.7 * decided.dense_flops_per_example)
    assert decided.cost <= decided.limit
    assert decided.flops_per_example < decided.cost  # slower than its FLOPs
    assert plan_from_json(plan_to_json(decided), explored) == decided


def test_a_plan_is_read_without_its_table_unless_it_counts_by_it(
    explored: Profile, tmp_path: Path
) -> None:
    options = PlanOptions(latency_table=slow(tmp_path, 0.5))
    by_params, by_time = (plan(explored, budget, options) for budget in ("60%", "latency=60%"))
    Path(options.latency_table).unlink()
    read = plan_from_json(plan_to_json(by_params), explored)
    assert read.layers == by_params.layers
    assert any(options.latency_table in warning for warning in read.warnings)
    with pytest.raises(DataError, match="cannot be read"):
        plan_from_json(plan_to_json(by_time), explored)


def test_a_table_that_is_named_is_read_where_low_rank_is_all_there_is(
    explored: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text("{}")
    options = PlanOptions(structures=("low_rank",), latency_table=str(path))
    with pytest.raises(DataError, match="not a latency table"):
        plan(explored, "60%", options)


def test_a_latency_budget_takes_no_structure_that_is_slower_than_dense(
    explored: Profile, tmp_path: Path
) -> None:
    options = PlanOptions(latency_table=slow(tmp_path, 10.0))
    decided = plan(explored, "latency=80%", options)
    assert not any(isinstance(layer.structure, Blast) for layer in decided.layers)
    assert any(isinstance(layer.structure, LowRank) for layer in decided.layers)


def test_a_plan_names_the_layers_that_will_be_slower(explored: Profile, tmp_path: Path) -> None:
    options = PlanOptions(structures=("blast",), latency_table=slow(tmp_path, 1.4))
    decided = plan(explored, "params=60%", options)
    named = [x.name for x in decided.layers if isinstance(x.structure, Blast)]
    assert named
    assert any("slower than dense" in warning for warning in decided.warnings)
    assert all(name in " ".join(decided.warnings) for name in named)
    fast = replace(options, latency_table=slow(tmp_path, 0.8))
    assert not any("slower" in warning for warning in plan(explored, "params=60%", fast).warnings)


def test_an_export_takes_the_fastest_form(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64, dtype=torch.float64)
    module = nn.Sequential(layer)
    spec = describe(module).layers[0]
    factors = BLAST.fit(layer.weight.detach()[None], Whitening(), spec)
    module[0] = BLAST.build(layer, spec, factors, layer.bias.detach())
    x = torch.randn(3, 64, dtype=torch.float64)
    before = module(x)
    for form in forms_of(module[0]):
        path = tmp_path / "table.json"
        found = table(
            *(measurement(name, 0.5 if name == form else 0.9) for name in forms_of(module[0]))
        )
        path.write_text(table_to_json(found, {}))
        assert choose_forms_(module, FormChoice(table=str(path))) == {"0": form}
        torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)  # float64
    with pytest.raises(ExportError, match="has no form 'einsum'"):
        use_form_(module[0], "einsum")


@pytest.mark.slow
def test_calibration_measures_every_form_and_number_of_rows() -> None:
    settings = CalibrationSettings(
        structures=("low_rank", "blast"), shapes=((64, 64),), rows=(1, 4), runs=2, formats=()
    )
    found = calibrate_latency(settings).measurements
    assert {it.rows for it in found} == {1, 4}
    assert {it.structure for it in found} == {"low_rank", "blast"}
    blast_forms = {it.form for it in found if it.structure == "blast"}
    assert blast_forms == {"broadcast", "columns", "matmuls"}
    assert all(it.ratio > 0 and 0 < it.kept < 1 for it in found)


def test_small_layers_are_timed_at_the_few_sizes_that_they_have() -> None:
    """Ranks at three shares of the break-even rank coincide; each is one model in the bench."""
    for shape in ((2, 3), (3, 3), (8, 8)):
        structures = structures_to_time(linear_layer(shape), ("low_rank",))
        assert structures
        assert len({*structures}) == len(structures)
    settings = CalibrationSettings(
        structures=("low_rank",), shapes=((2, 3),), rows=(1,), runs=1, formats=()
    )
    assert len(calibrate_latency(settings).measurements) == 1


@pytest.mark.parametrize("shape", [(128, 128), (384, 1536), (2048, 2048)])
def test_every_structure_of_linear_layers_can_be_timed(shape: tuple[int, int]) -> None:
    linear = {name for name, it in STRUCTURES.items() if "linear" in it.kinds} - {"dense"}
    assert set(CalibrationSettings().structures) == linear
    assert not_timed(tuple(linear), (shape,)) == {}
    spec = linear_layer(shape)
    for structure in structures_to_time(spec, tuple(linear)):
        structure.check(spec)
        assert structure.weight_params(spec) < spec.weight_params


ANY = ("--rows", "1", "--runs", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "1"), "1 x 1 is too small a layer for low-rank"),
        (("--sizes", "64", "--structures", "monarch"), "64 x 64 is too small a layer for monarch"),
        (("--sizes", "99999999"), "a layer of 99999999 x 99999999 takes 40,000,000 GB at least"),
        (("--sizes", "64", "--rows", str(10**15)), "fewer --rows"),
        (("--structures", "tucker2,cp"), "tucker2, cp: only structures of linear layers are timed"),
        (("--structures", "tensor-train"), "tensor-train: only structures of linear layers"),
        (("-o", "/proc/x.json"), "/proc/x.json: "),
    ],
)
def test_what_cannot_be_timed_is_refused_before_any_work(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(calibrate, "time_structures", refuse)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["calibrate-latency", *ANY, *arguments])
    assert result.exit_code == 7
    assert said in result.stderr
    assert "; " in result.stderr  # the next step
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "latency_table.json").exists()


def test_structures_of_other_layers_are_named_as_not_timed(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    arguments = ("--structures", "low-rank,tucker2,monarch", "--sizes", "16", "-o", str(output))
    arguments = (*arguments, "--formats", "")
    result = CliRunner().invoke(main, ["calibrate-latency", *ANY, *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert set(record) == {"file", "machine", "measurements", "not_timed"}
    assert set(record["not_timed"]) == {"tucker2", "monarch"}
    assert "not timed: tucker2 (it replaces conv1d, conv2d" in result.stderr
    assert {it.structure for it in latency_table(str(output)).measurements} == {"low_rank"}


def test_a_table_is_read_back_and_a_wrong_one_refused_by_field(tmp_path: Path) -> None:
    held = table(measurement("columns", 0.75))
    text = table_to_json(held, {"device": "none"})
    assert table_from_json(text, "t").measurements[0].ratio == 0.75
    broken = json.loads(text)
    broken["measurements"][0]["ratio"] = -1
    with pytest.raises(DataError, match=r"measurements\[0\]\.ratio"):
        table_from_json(json.dumps(broken), "t")
    with pytest.raises(DataError, match="not a latency table"):
        table_from_json("{}", "t")
    with pytest.raises(DataError, match="cannot be read"):
        latency_table(str(tmp_path / "absent.json"))


def test_the_table_that_ships_covers_every_form_of_blast_on_cpu() -> None:
    rows = [it for it in latency_table().measurements if it.structure == "blast"]
    assert {it.form for it in rows if it.provider == "cpu"} == set(forms_of(_blast_layer()))


def _blast_layer() -> nn.Module:
    layer = networks.Mlp().first
    spec = replace(SPEC, out_features=layer.out_features, in_features=layer.in_features)
    blast = Blast(2, blocks=2)
    return blast.build(layer, spec, blast.empty_factors(spec), layer.bias.detach())
