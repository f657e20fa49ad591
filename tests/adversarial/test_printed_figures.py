"""Claims of the figures that a run prints: each is what it is called, worked out apart here."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adversarial.carried_out import CarriedOut, carry_out
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.doubts import doubts, remarks
from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.network.batches import Batch
from lrcompress.pipeline.stages.compress import _facts
from lrcompress.pipeline.stages.deliver import _tuned_quality
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.reporting.report import Cost, Report
from lrcompress.tuning.report import TuneReport

WIDTH, LENGTH, VOCABULARY = 16, 9, 30
FP32 = 1e-4


class Encoder(nn.Module):
    """Two attention-free blocks over patches or tokens; every position is an output."""

    def __init__(self, *, head: int = 0, pictures: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.patches = nn.Conv2d(3, WIDTH, 4, 4) if pictures else None
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, head) if head else None
        if self.head is not None:
            with torch.no_grad():
                self.head.weight *= 6.0

    def blocks(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        for up, down in zip(self.up, self.down, strict=True):
            mixed = x - x.mean(1, keepdim=True) * 0.3
            x = x + down(functional.gelu(up(mixed)))
        x = self.norm(x)
        if self.head is not None:
            return {"logits": self.head(x)}
        return {"last_hidden_state": x}


class TextEncoder(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return self.blocks(self.embedding(input_ids), attention_mask)


class PictureEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__(pictures=True)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        assert self.patches is not None
        return self.blocks(self.patches(pixel_values).flatten(2).mT)


def texts(*, padded: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(8):
        ids = torch.randint(1, VOCABULARY, (8, LENGTH), generator=generator)
        lengths = torch.randint(2, LENGTH + 1, (8, 1), generator=generator)
        mask = (torch.arange(LENGTH) < (lengths if padded else LENGTH)).long().expand(8, -1)
        batches.append({"input_ids": ids * mask, "attention_mask": mask.contiguous()})
    return batches


def pictures() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(8, 3, 16, 16, generator=generator)} for _ in range(8)]


@torch.no_grad()
def both(
    dense: nn.Module, small: nn.Module, batches: Any, name: str
) -> list[tuple[Tensor, Tensor]]:
    """Outputs at the positions that count, one after another: (positions, features) each."""
    found = []
    for batch in batches:
        f, g = dense(**batch)[name], small(**batch)[name]
        kept = batch.get("attention_mask", torch.ones(f.shape[:2])).bool()
        found.append((f[kept], g[kept]))
    return found


def compressed(
    module: nn.Module, batches: list[Batch], **named: Any
) -> tuple[nn.Module, CarriedOut]:
    dense = copy.deepcopy(module).eval()
    return dense, carry_out(module.eval(), batches, "70%", **named)


CASES = {
    "tokens": (TextEncoder, lambda: texts(padded=False)),
    "padded tokens": (TextEncoder, lambda: texts(padded=True)),
    "patches": (PictureEncoder, pictures),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_cosine_is_the_mean_over_positions(case: str) -> None:
    make: Any
    make, data = CASES[case]
    module = make()
    dense, made = compressed(module, data())
    parts = {"calibration": made.aside.calibration, "examples set aside": made.aside.confirming}
    fidelity = _facts(made.report, made.profile).fidelity
    for where, batches in parts.items():
        pairs = both(dense, module, batches, "last_hidden_state")
        cosines = torch.cat([functional.cosine_similarity(f, g, dim=-1) for f, g in pairs])
        expected = float(cosines.mean())
        assert 0.3 < expected < 0.9999
        assert fidelity[f"mean cosine, {where}"] == pytest.approx(expected, abs=FP32)
    # The divergence stays the sum over an example's positions, as predicted
    held = made.report.held_out
    assert held is not None
    assert held.mean == pytest.approx(held.positions * (1 - expected), rel=1e-3)
    assert held.positions == pytest.approx(len(cosines) / held.examples)


def test_a_good_embedding_of_many_positions_is_not_doubted_for_their_number() -> None:
    """Cosines of .98 at 20 positions are a divergence of .4, and of 800 one of 16."""
    found = profile(PictureEncoder().eval(), pictures())
    for positions in (20, 800):
        each = Divergence(0.02 * positions, 64, apart=float(positions), positions=positions)
        report = CompressReport(
            (), "two-sided", "cosine", each.mean, each, replace(each, examples=8)
        )
        assert doubts(report, found) == ()
        worse = replace(each, mean=0.15 * positions, examples=8)
        report = CompressReport((), "two-sided", "cosine", worse.mean, worse, worse)
        (doubt,) = doubts(report, found)
        assert "the mean cosine to the dense output is 0.850" in doubt.said


@pytest.mark.parametrize("padded", [False, True])
def test_nats_and_first_choices_are_those_of_positions_that_count(*, padded: bool) -> None:
    module = TextEncoder(head=7)
    dense, made = compressed(module, texts(padded=padded))
    facts = _facts(made.report, made.profile)
    pairs = both(dense, module, made.aside.confirming, "logits")
    f, g = (torch.cat(side) for side in zip(*pairs, strict=True))
    p, q = f.log_softmax(-1), g.log_softmax(-1)
    nats = (p.exp() * (p - q)).sum(-1)
    examples = sum(len(batch["input_ids"]) for batch in made.aside.confirming)
    row = facts.divergences[-1]
    assert row.where == "examples set aside"
    assert row.measured == pytest.approx(float(nats.sum()) / examples, rel=1e-3)
    assert row.positions == pytest.approx(len(nats) / examples)
    each = facts.fidelity["nats a position, examples set aside"]
    assert each == pytest.approx(float(nats.mean()), rel=1e-3)
    same = facts.fidelity["same first choice, examples set aside"]
    assert same == pytest.approx(float((f.argmax(-1) == g.argmax(-1)).float().mean()))


def test_the_unit_is_said() -> None:
    def report(objective: str, positions: float) -> str:
        from lrcompress.reporting.report import Divergence as Row

        return Report(
            model="m", command="", metric="two-sided", objective=objective, examples=1, tokens=0,
            before=Cost(1, 1, 1.0), layers=(), left_alone=(), environment={},
            divergences=(Row("calibration", 0.1, 0.1, positions=positions),),
        ).unit  # fmt: skip

    assert report("kl", 1.0) == "kl divergence per example, in nats"
    assert report("kl", 64.0) == (
        "kl divergence per example, in nats, summed over its positions (64 on average)"
    )
    assert report("cosine", 256.5) == (
        "cosine divergence per example, summed over its positions (256 on average)"
    )
    assert report("squared", 1.0) == "squared divergence per example"


# ---- predicted and measured are like for like ---------------------------------------------------


def test_the_prediction_is_held_against_the_network_before_the_refit() -> None:
    """Carried out again without a refit, the same plan gives the figure beside the prediction."""
    batches = texts(padded=True)
    dense, made = compressed(TextEncoder(head=7), batches, refit=True)
    report = made.report
    assert report.refit is not None
    assert report.refit.accepted > 0
    again = copy.deepcopy(dense)
    plain = compress_(
        again,
        made.plan,
        made.profile,
        batches=made.aside.calibration,
        confirming=made.aside.confirming,
        options=CompressOptions(refit=False),
    )
    assert plain.calibration is not None
    assert plain.held_out is not None
    assert report.calibration_unrefitted is not None
    assert report.held_out_unrefitted is not None
    assert report.calibration_unrefitted.mean == pytest.approx(plain.calibration.mean, rel=1e-4)
    assert report.held_out_unrefitted.mean == pytest.approx(plain.held_out.mean, rel=1e-4)
    rows = _facts(report, made.profile).divergences
    assert [row.without_refit for row in rows] == [
        report.calibration_unrefitted.mean, report.held_out_unrefitted.mean,
    ]  # fmt: skip
    assert report.held_out is not None
    assert rows[1].measured == report.held_out.mean != rows[1].without_refit
    assert plain.calibration_unrefitted is plain.held_out_unrefitted is None


def test_a_refit_that_mends_much_makes_no_prediction_wrong_and_hides_no_wrong_one() -> None:
    found = profile(TextEncoder(head=7).eval(), texts(padded=True), ProfileOptions(trials=False))
    fine = Divergence(0.1, 64, 0.99)
    few = Divergence(0.1, 8, 0.99)
    report = CompressReport((), "two-sided", "kl", 0.5, fine, few)
    assert remarks(report)  # five times less than predicted, were there no refit
    as_predicted = Divergence(0.5, 8, 0.97)
    report = replace(report, held_out_unrefitted=as_predicted, calibration_unrefitted=as_predicted)
    assert remarks(report) == ()
    assert doubts(report, found) == ()
    report = replace(report, held_out_unrefitted=Divergence(2.0, 8, 0.9))
    (doubt,) = doubts(report, found)
    assert "set aside before the refit, 2, is 4.0 times the predicted 0.5" in doubt.said


def test_the_tunings_cosine_is_the_mean_over_positions() -> None:
    tuned = TuneReport(
        objective="distill", measure="cosine divergence", start=8.0, end=2.0, best_step=1,
        history=(), losses=(), steps=1, learning_rate=1e-3, restarts=0, trained_params=1,
        taught_examples=8, judging_examples=8, positions=40.0,
    )  # fmt: skip
    assert _tuned_quality(tuned) == {
        "mean cosine, held out: before tuning": pytest.approx(0.8),
        "mean cosine, held out: after tuning": pytest.approx(0.95),
    }


# ---- data that mislead --------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [2, 6, 12])
@pytest.mark.parametrize("seed", range(3))
def test_few_examples_never_pass_for_good(examples: int, seed: int) -> None:
    """A handful shows a plane; the rest of the network is cut. Whatever is measured is doubted."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 48)
            self.head = nn.Linear(48, 4)
            with torch.no_grad():
                self.head.weight *= 8.0

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.second(torch.relu(self.first(x))))
            return torch.as_tensor(self.head(h))

    module = Wide().eval()
    dense = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 48, generator=generator)
    made = carry_out(module, [{"x": part} for part in torch.split(x, 2)], "25%")
    other = torch.randn(512, 48, generator=generator)
    with torch.no_grad():
        same = float((dense(other).argmax(-1) == module(other).argmax(-1)).float().mean())
    assert same < 0.95  # the claim is not empty
    assert made.doubts


def test_calibration_of_another_kind_than_what_is_set_aside_is_doubted() -> None:
    module = TextEncoder(head=7).eval()
    batches = texts(padded=False)
    narrow = [{**b, "input_ids": 1 + b["input_ids"] % 3} for b in batches]
    found = profile(module, narrow)
    report: CompressReport = compress_(
        module,
        plan(found, "25%"),
        found,
        batches=narrow,
        judging=narrow[:2],
        confirming=batches[:2],
    )
    assert any("times the predicted" in doubt.said for doubt in doubts(report, found))
