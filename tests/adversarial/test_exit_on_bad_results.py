"""Claims of the exit code: a result that is known to be bad never ends with 0, unless asked to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adversarial.carried_out import carry_out
from lrcompress.compression.compress import compress_
from lrcompress.compression.doubts import doubts, tuned_doubts
from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.network.batches import Batch
from lrcompress.pipeline.stages.compress import CompressFacts
from lrcompress.pipeline.stages.deliver import CompressedRun, _doubts
from lrcompress.pipeline.stages.plan import PlanFacts
from lrcompress.pipeline.stages.sweep import SweepFacts
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.report import TuneReport
from lrcompress_cli.exit_codes import ExitCode, of_run
from lrcompress_cli.main import main

WIDTH, HIDDEN, CLASSES = 24, 32, 10


class Network(nn.Module):
    """Weights of rank 6 with a little noise: half of the parameters are enough, a tenth is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        with torch.no_grad():
            for layer in (self.first, self.second):
                m, n = layer.weight.shape
                low = torch.randn(m, 6) @ torch.randn(6, n) / n**0.5
                layer.weight.copy_(low + 1e-3 * torch.randn(m, n))
            self.head.weight *= 6.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return torch.as_tensor(self.head(h))


def build() -> nn.Module:
    return Network().eval()


def batches(count: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(16, WIDTH, generator=generator)} for _ in range(count)]


def constant() -> list[Batch]:
    return [{"x": torch.full((16, WIDTH), 0.5)} for _ in range(4)]


@dataclass(frozen=True)
class Ended:
    code: int
    record: dict[str, Any]
    stderr: str


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = Path(__file__).stem

    def ended(data: str, budget: str, *more: str) -> Ended:
        given = ["--data", f"{module}:{data}", "--budget", budget, "-o", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as end:
            main(["compress", f"{module}:build", *given, "--no-report", "--json", *more])
        out = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, json.loads(out.out), out.err)

    return ended


def test_a_sound_result_ends_with_zero(run: Any) -> None:
    ended = run("batches", "75%")
    assert ended.code == ExitCode.OK
    assert ended.record["severe_doubts"] == []


def test_a_collapsed_result_does_not_and_says_what_to_do(run: Any, tmp_path: Path) -> None:
    ended = run("batches", "25%", "--metric", "plain", "--no-refit")
    assert ended.code == ExitCode.ACCURACY == 6
    assert ended.record["verified"] is True
    assert ended.record["trusted"] is False
    (severe,) = ended.record["severe_doubts"]
    assert severe in ended.record["doubts"]
    (line,) = [x for x in ended.stderr.splitlines() if x.startswith("error: ")]
    assert severe in line
    assert "--budget" in line
    assert line.endswith("with --accept-doubts, the exit code is 0")
    assert (tmp_path / "out" / "model.onnx").is_file()
    # The same once more, from what is finished
    again = run("batches", "25%", "--metric", "plain", "--no-refit")
    assert (again.code, again.record["severe_doubts"]) == (6, [severe])
    accepted = run("batches", "25%", "--metric", "plain", "--no-refit", "--accept-doubts")
    assert accepted.code == ExitCode.OK
    assert accepted.record["severe_doubts"] == [severe]
    assert "error" not in accepted.stderr


def test_data_that_show_nothing_do_not_pass(run: Any) -> None:
    ended = run("constant", "75%", "--no-export")
    assert ended.code == ExitCode.ACCURACY
    assert "every value of the calibration inputs is the same" in ended.stderr
    assert run("constant", "75%", "--no-export", "--accept-doubts").code == ExitCode.OK


@dataclass(frozen=True)
class Check:
    kind: str
    passed: bool | None


def test_a_failed_check_counts_more_than_a_doubt() -> None:
    checks = [Check("numeric", True), Check("budget", False)]
    assert of_run(checks, ["bad"], accept_doubts=False) is ExitCode.BUDGET
    assert of_run(checks, ["bad"], accept_doubts=True) is ExitCode.BUDGET
    assert of_run(checks[:1], ["bad"], accept_doubts=False) is ExitCode.ACCURACY
    assert of_run(checks[:1], ["bad"], accept_doubts=True) is ExitCode.OK
    assert of_run(checks[:1], [], accept_doubts=False) is ExitCode.OK


# ---- what is severe -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Profile:
    return profile(build(), batches(), ProfileOptions(trials=False))


GOOD = Divergence(0.1, 64, 0.99, apart=4.0)


@pytest.mark.parametrize(
    ("objective", "measured", "severe"),
    [
        ("kl", replace(GOOD, top1_agreement=0.94), False),
        ("kl", replace(GOOD, top1_agreement=0.51), False),
        ("kl", replace(GOOD, top1_agreement=0.49), True),
        # two classes: a constant keeps half of the choices, and is as far as a constant is
        ("kl", Divergence(0.6, 64, 0.55, apart=1.0), True),
        ("cosine", Divergence(0.2, 64, apart=1.0), False),
        ("cosine", Divergence(0.6, 64, apart=1.0), True),
        ("cosine", Divergence(0.6, 64, apart=3.0), True),
        ("cosine", Divergence(60.0, 64, apart=300.0, positions=100), True),
        ("cosine", Divergence(20.0, 64, apart=100.0, positions=100), False),
        ("squared", Divergence(0.3, 64, apart=1.0), False),
        ("squared", Divergence(0.6, 64, apart=1.0), True),
        ("weighted-sum", Divergence(0.6, 64, apart=1.0), True),
    ],
)
def test_what_is_known_to_be_bad_is_severe(
    objective: str, measured: Divergence, *, severe: bool, found: Profile
) -> None:
    report = CompressReport((), "two-sided", objective, measured.mean, measured, measured)
    (doubt,) = doubts(report, found)
    assert doubt.severe is severe
    (after,) = tuned_doubts(objective, measured)
    assert after.severe is severe


def test_what_cannot_be_judged_is_not_severe(found: Profile) -> None:
    few = CompressReport((), "two-sided", "kl", 0.1, GOOD, None)
    assert [doubt.severe for doubt in doubts(few, found)] == [False]
    unpredicted = CompressReport((), "two-sided", "kl", 0.01, GOOD, GOOD)
    assert [doubt.severe for doubt in doubts(unpredicted, found)] == [False]


@pytest.mark.parametrize("collapse", ["zero", "constant"])
def test_a_network_that_says_nothing_any_more_is_severe(collapse: str) -> None:
    """Whatever the layers become: a head of zeros, or one that gives the mean output."""
    module = build()
    made = carry_out(module, batches(), "75%")
    assert not made.is_known_bad
    head = module.get_submodule("head")
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if collapse == "zero" or "bias" not in name:
                parameter.zero_()
    from lrcompress.compression.measure import measure_held_out
    from lrcompress.network.held_out_divergence import held_out_divergence

    assert made.profile.readout is not None
    judge = held_out_divergence(build(), made.aside.confirming, made.profile.readout)
    (doubt,) = tuned_doubts("kl", measure_held_out(module, judge))
    assert doubt.severe


# ---- after a tuning the network is judged anew --------------------------------------------------

TUNED = TuneReport(
    objective="distill", measure="kl divergence", start=1.0, end=0.1, best_step=1, history=(),
    losses=(), steps=1, learning_rate=1e-3, restarts=0, trained_params=1, taught_examples=8,
    judging_examples=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("quality", "severe"),
    [(GOOD, 0), (replace(GOOD, top1_agreement=0.3), 1), (None, 1)],
)
def test_a_tuning_that_mends_the_network_takes_the_severity_away(
    quality: Divergence | None, severe: int, found: Profile
) -> None:
    bad = "not to be trusted: the first choice changes for 70.0% of examples set aside"
    outcome = CompressFacts((), {}, (), doubts=(bad,), severe=(bad,))
    tuning = replace(TUNED, quality=quality)
    made = CompressedRun(
        found, plan(found, "75%"), PlanFacts(), SweepFacts(), outcome, (), "key", tuning
    )
    told = _doubts(made)
    assert sum(doubt.severe for doubt in told) == severe
    assert told[0].said == f"before tuning: {bad}"


def test_no_tuning_mends_data_that_show_nothing(found: Profile) -> None:
    void = replace(found, degenerate=("all 8 calibration examples are the same",))
    report = CompressReport((), "two-sided", "kl", 0.1, GOOD, GOOD)
    said = tuple(doubt.said for doubt in doubts(report, void))
    outcome = CompressFacts((), {}, (), doubts=said, severe=said)
    tuning = replace(TUNED, quality=GOOD)
    made = CompressedRun(
        void, plan(void, "75%"), PlanFacts(), SweepFacts(), outcome, (), "key", tuning
    )
    assert [doubt.severe for doubt in _doubts(made)] == [True]


def test_examples_that_follow_each_other_are_no_measure_of_the_whole() -> None:
    """Frames of one scene are alike; half a batch away is another scene."""
    scenes = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    x = scenes.repeat_interleave(8, 0) + 1e-3 * torch.randn(32, WIDTH)
    module = build()
    found = profile(module, [{"x": x}], ProfileOptions(trials=False))
    report = compress_(module, plan(found, "90%"), found, batches=[{"x": x}])
    assert report.calibration is not None
    assert report.calibration.apart is not None
    with torch.no_grad():
        p = build()(x).log_softmax(-1)
    q = p.roll(16, 0)
    far = float((p.exp() * (p - q)).sum(-1).mean())
    assert report.calibration.apart == pytest.approx(far, rel=1e-3)
    assert far > 0.1
