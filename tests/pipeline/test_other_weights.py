"""Weights that no layer holds take fewer bits: small files, the same values everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from recurrent_network import batches, build
from torch import Tensor, nn

import lrcompress
from lrcompress.errors import BudgetError, FitError, ModelError, PlanError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.verify.verify import verify
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.network.other_weights import (
    other_weights,
    others_format,
    round_others_,
    rounded_others,
    stored_others,
)
from lrcompress.pipeline import FolderOptions, RunOptions, RunResult, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.planning.default_formats import FOR_BYTES
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.others import others_choices
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress_cli.main import main

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
LAYERS = ("embed", "head")
OTHERS = {
    "positions", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0",
    "recurrent.weight_ih_l0_reverse", "recurrent.weight_hh_l0_reverse", "wider.weight",
}  # fmt: skip


def options(output: Path, budget: str, formats: tuple[str, ...] = FOR_BYTES) -> RunOptions:
    return RunOptions(
        source=SourceOptions("recurrent_network:build", data="recurrent_network:batches"),
        folder=FolderOptions(output, report=False),
        budget=Budget.parse(budget),
        profile=ProfileOptions(formats=formats),
        rounds=0,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    output = tmp_path_factory.mktemp("others") / "run"
    return output, run(options(output, "bytes=34%"))


def test_all_large_weights_outside_of_layers_are_found() -> None:
    module = build()
    assert set(other_weights(module, LAYERS)) == OTHERS
    assert set(other_weights(module, ())) == OTHERS  # those of the layers are small


def test_rounding_is_undone(finished: tuple[Path, RunResult]) -> None:
    module = build()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with rounded_others(module, LAYERS, "int8"):
        assert others_format(module) == "int8"
        assert set(stored_others(module)) == OTHERS
        changed = {n for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
        assert changed == OTHERS
    assert others_format(module) == "fp32"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_profile_measures_what_rounding_loses(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    others = result.profile.others
    assert others is not None
    assert set(others.names) == OTHERS
    assert others.losses["fp32"] == 0 < others.losses["fp16"] < others.losses["int8"] < 1e-2
    assert others.bytes["fp32"] == 4 * others.params == 2 * others.bytes["fp16"]


def test_the_file_keeps_the_budget_and_passes_every_check(
    finished: tuple[Path, RunResult],
) -> None:
    output, result = finished
    assert result.plan.options.others == "int8"
    assert result.plan.others_loss > 0
    file = (output / "model.onnx").stat().st_size
    assert 0.9 * result.plan.limit <= file <= result.plan.limit
    assert result.plan.bytes >= file >= 0.95 * result.plan.bytes
    assert not [check for check in result.report.checks if check.passed is False]
    graph = onnx.load(output / "model.onnx").graph
    codes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 3}
    assert sum(array.size for array in codes.values()) >= sum(
        weight.numel() for weight in other_weights(build(), LAYERS).values()
    )


def test_the_measured_divergence_counts_their_rounding(finished: tuple[Path, RunResult]) -> None:
    _, result = finished
    (calibration, *_) = result.report.divergences
    assert calibration.predicted == pytest.approx(
        result.plan.predicted_loss + result.plan.others_loss
    )
    assert calibration.measured >= 0.3 * result.plan.others_loss


def test_a_loaded_run_has_the_same_values_and_exports_the_same_file(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output, _ = finished
    module = lrcompress.load(output, trust_factory="recurrent_network:build")
    assert others_format(module) == "int8"
    assert set(stored_others(module)) == OTHERS
    again = tmp_path / "again.onnx"
    arguments = ["export", str(output), "--data", "recurrent_network:batches", "-o", str(again)]
    made = CliRunner().invoke(main, [*arguments, "--trust-factory", "recurrent_network:build"])
    assert made.exit_code == 0, made.output
    assert abs(again.stat().st_size - (output / "model.onnx").stat().st_size) < 2000


def test_an_edited_record_is_refused(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    output, _ = finished
    edited = tmp_path / "edited"
    edited.mkdir()
    for path in output.iterdir():
        if path.is_file():
            (edited / path.name).write_bytes(path.read_bytes())
    record = json.loads((edited / "lrcompress.json").read_text())
    record["others"] = "int3"
    (edited / "lrcompress.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"others: int3 is not one of fp32, fp16, int8"):
        lrcompress.load(edited, trust_factory="recurrent_network:build")


def test_the_plan_weighs_their_loss_against_that_of_the_layers(
    finished: tuple[Path, RunResult],
) -> None:
    _, result = finished
    profile = result.profile
    assert plan(profile, "bytes=100%").options.others == "fp32"
    assert plan(profile, "bytes=56%").options.others == "fp16"
    small = plan(profile, "bytes=34%")
    assert small.options.others == "int8"
    for format in ("fp32", "fp16"):
        with pytest.raises(BudgetError):
            plan(profile, "bytes=34%", PlanOptions(others=format))
    assert small.bytes <= small.limit


def test_what_is_said_of_speed_does_not_ask_for_as_few_flops(
    finished: tuple[Path, RunResult],
) -> None:
    (said,) = (text for text in finished[1].plan.warnings if "hardly faster" in text)
    assert "flops" not in said
    assert "--budget latency=" in said


def test_where_nothing_is_gained_they_stay(finished: tuple[Path, RunResult]) -> None:
    profile = finished[1].profile
    for budget, more in (
        ("params=90%", PlanOptions()),
        ("bytes=90%", PlanOptions(formats=("fp32",))),
        ("bytes=90%", PlanOptions(bytes_per_param=2)),
        ("bytes=90%", PlanOptions(include=("head",))),
    ):
        assert others_choices(profile, (Budget.parse(budget),), more) == ("fp32",)
    inside = replace(Budget.parse("bytes=90%"), scope="compressible")
    assert others_choices(profile, (inside,), PlanOptions()) == ("fp32",)


def test_a_format_that_was_not_measured_is_refused(finished: tuple[Path, RunResult]) -> None:
    profile = replace(finished[1].profile, others=None)
    with pytest.raises(PlanError, match=r"no loss of other weights in int8; write fp32"):
        plan(profile, "bytes=90%", PlanOptions(others="int8"))
    edited = plan_to_json(plan(finished[1].profile, "bytes=34%"))
    with pytest.raises(PlanError, match=r"no loss of other weights in int8; write fp32"):
        plan_from_json(edited, profile)


@pytest.mark.parametrize(("value", "fault"), [(1e5, "large"), (1e-9, "small")])
def test_values_that_no_data_reach_are_not_lost_in_a_format(value: float, fault: str) -> None:
    """Rows of a table that the calibration data are too short for would be infinite, or zero."""
    module = build()
    with torch.no_grad():
        module.positions[:, 40:] = value  # the data have 20 positions
        if fault == "small":
            module.positions[:, :40] *= 1e-9
    profile = lrcompress.profile(
        module, batches(), ProfileOptions(formats=FOR_BYTES), judging=batches()[:1]
    )
    assert profile.others is not None
    assert set(profile.others.losses) == {"fp32", "int8"}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(FitError, match=rf"^positions: its values are too {fault} for fp16"):
        round_others_(module, LAYERS, "fp16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Joined(nn.Module):
    """Its bilinear weight is read by a product, in another layout than that of a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pairs, self.head = nn.Bilinear(32, 32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pairs(x, x.flip(-1)))
        return logits


@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_a_weight_that_a_product_reads_in_its_own_layout_passes(
    format: str, tmp_path: Path
) -> None:
    module, batch = Joined().eval(), {"x": torch.randn(5, 32)}
    round_others_(module, ("head",), format)
    export_onnx(module, batch, tmp_path / "model.onnx")
    report = verify(tmp_path / "model.onnx", module, batch)
    assert report.ok, report.failed
    assert (tmp_path / "model.onnx").stat().st_size < 0.6 * 4 * 16 * 32 * 32
