"""What makes a result one that is not to be trusted."""

from __future__ import annotations

import pytest
import small_network
import torch

from lrcompress.compression.compress import compress_
from lrcompress.compression.doubts import doubts, remarks
from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile


@pytest.fixture(scope="module")
def found() -> Profile:
    return profile(small_network.build().eval(), small_network.batches())


CALIBRATION, HELD_OUT = Divergence(0.1, 64, 0.99), Divergence(0.1, 8, 0.99)


def report(
    *,
    predicted: float = 0.1,
    calibration: Divergence = CALIBRATION,
    held_out: Divergence | None = HELD_OUT,
    objective: str = "kl",
) -> CompressReport:
    return CompressReport((), "two-sided", objective, predicted, calibration, held_out)


def test_what_does_as_predicted_is_trusted(found: Profile) -> None:
    assert doubts(report(), found) == ()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            report(calibration=Divergence(0.3, 64, 0.99), held_out=Divergence(0.4, 8, 0.99)),
            "4.0 times the predicted 0.1",
        ),
        (
            report(predicted=0.4, held_out=Divergence(0.4, 8, 0.99)),
            "4.0 times that on the calibration data",
        ),
        (report(held_out=Divergence(0.1, 8, 0.9)), "first choice changes for 10.0%"),
        (
            report(objective="cosine", held_out=Divergence(0.15, 8)),
            "mean cosine to the dense output is 0.850",
        ),
        (
            report(objective="squared", held_out=Divergence(0.1, 8, apart=0.5)),
            "changes by 20% of the difference between two examples",
        ),
        (
            report(calibration=Divergence(0.1, 64, 0.6)),
            "first choice changes for 40.0% of the calibration data",
        ),
        (report(held_out=Divergence(0.1, 1, 1.0)), "1 examples set aside are too few"),
        (report(held_out=None), "no example could be set aside"),
        (
            report(calibration=Divergence(0.1, 64, 0.99, apart=0.0)),
            "the same output for all calibration examples",
        ),
    ],
)
def test_what_does_not_is_said_with_what_to_do(
    made: CompressReport, said: str, found: Profile
) -> None:
    (doubt,) = doubts(made, found)
    assert doubt.said.startswith("not to be trusted: ")
    assert said in doubt.said
    assert "--data" in doubt.said
    assert "--exclude" in doubt.said


def test_ratios_of_next_to_nothing_mean_nothing(found: Profile) -> None:
    small = report(
        predicted=1e-9,
        calibration=Divergence(1e-9, 64, 1.0),
        held_out=Divergence(1e-6, 8, 1.0),
    )
    assert doubts(small, found) == ()


def test_data_that_show_too_little_are_told_on_examples_that_chose_nothing() -> None:
    torch.manual_seed(0)
    module = small_network.build().eval()
    with torch.no_grad():
        module.head.weight *= 20
    few = torch.randn(64, 2) @ torch.randn(2, small_network.WIDTH)
    batches = [{"x": part} for part in few.split(16)]
    made = profile(module, batches[:3])
    outcome = compress_(
        module,
        plan(made, "20%"),
        made,
        batches=batches[:3],
        judging=batches[3:],
        confirming=[{"x": torch.randn(16, small_network.WIDTH)}],
    )
    assert outcome.held_out is not None
    assert outcome.held_out.examples == 16
    assert any("too few" in doubt.said for doubt in doubts(outcome, made))


@pytest.mark.parametrize(
    ("measured", "apart", "said"),
    [
        (0.25, None, "2.5 times"),
        (0.04, None, "0.4 times"),
        (0.15, None, None),
        (0.9, 500.0, "both"),
    ],
)
def test_what_is_off_by_more_than_twice_has_a_remark(
    measured: float, apart: float | None, said: str | None, found: Profile
) -> None:
    made = report(
        calibration=Divergence(0.9, 64, 0.99), held_out=Divergence(measured, 8, 0.99, apart)
    )
    assert doubts(made, found) == ()
    assert [said in remark for remark in remarks(made)] == ([] if said is None else [True])


def test_what_is_doubted_has_no_remark_besides(found: Profile) -> None:
    made = report(held_out=Divergence(0.9, 8, 0.99))
    assert doubts(made, found)
    assert remarks(made) == ()


def test_a_negligible_divergence_is_not_remarked_for_being_small(found: Profile) -> None:
    made = report(predicted=0.05, held_out=Divergence(1e-6, 8, 1.0, apart=500.0))
    assert remarks(made) == ()
