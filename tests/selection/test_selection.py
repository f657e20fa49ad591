"""Plans that are carried out, measured on examples set aside, and made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_network
import torch
from torch import Tensor, nn

from lrcompress.checkpoint import CheckpointFolder
from lrcompress.errors import PlanError
from lrcompress.network.batches import Batch
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout import Readout, choose_readout
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.selection.measurements import plan_digest
from lrcompress.selection.rounds import Selection, corrected, select
from lrcompress.selection.trial_network import TrialNetwork
from lrcompress.structures import Dense, LowRank


class Parallel(nn.Module):
    """x: (examples, 12) → the sum of two layers: the divergence is quadratic in their errors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 9), nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.one(x) + self.two(x))


def features(count: int, width: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(16, width, generator=generator)} for _ in range(count)]


def squared(module: nn.Module, batch: Batch) -> Readout:
    readout, _ = choose_readout(module(**batch), objective="squared")
    return readout


def prepared() -> tuple[nn.Module, Profile, list[Batch], Readout]:
    torch.manual_seed(0)
    module, batches = Parallel().eval(), features(4, 12)
    found = profile(module, batches, ProfileOptions(objective="squared"))
    return module, found, features(2, 12, seed=1), squared(module, batches[0])


def test_shares_are_each_layers_error_with_its_cross_terms() -> None:
    module, found, judging, readout = prepared()
    planned = plan(found, "50%", PlanOptions(allocator="uniform"))
    network = TrialNetwork(module, found, held_out_divergence(module, judging, readout))
    attribution = network.attribution(planned)
    x = torch.cat([batch["x"] for batch in judging])
    errors = {}
    for name in ("one", "two"):
        alone = replace(
            planned,
            layers=tuple(
                layer if layer.name == name else replace(layer, structure=Dense())
                for layer in planned.layers
            ),
        )
        with network._applied(alone):
            other = module(x).detach()
        errors[name] = other - module(x).detach()
    both = errors["one"] + errors["two"]
    for name, error in errors.items():
        expected = 0.5 * float((error * both).sum()) / len(x)
        assert attribution.shares[name] == pytest.approx(expected, rel=1e-4)
    # Euler: of a quadratic divergence the shares are the whole of it
    assert sum(attribution.shares.values()) == pytest.approx(attribution.divergence, rel=1e-4)
    assert attribution.divergence == pytest.approx(network.divergence(planned), rel=1e-5)


def test_a_correction_makes_the_prediction_the_share() -> None:
    module, found, judging, readout = prepared()
    planned = plan(found, "50%", PlanOptions(allocator="uniform"))
    network = TrialNetwork(module, found, held_out_divergence(module, judging, readout))
    attribution = network.attribution(planned)
    options = replace(planned.options, corrections=corrected(planned, attribution))
    again = plan(found, "50%", options)
    assert again.structures == planned.structures  # uniform ranks do not depend on losses
    for layer in again.layers:
        assert layer.predicted_loss == pytest.approx(attribution.shares[layer.name], rel=1e-6)


def selected(module: nn.Module, found: Profile, judging: list[Batch], **more: object) -> Selection:
    return select(module, found, "40%", judging, options=PlanOptions(), **more)  # type: ignore[arg-type]


def certain_network() -> tuple[nn.Module, Profile, list[Batch]]:
    """A classifier whose softmax is certain of nearly every example."""
    torch.manual_seed(0)
    module = small_network.build().eval()
    with torch.no_grad():
        module.head.weight *= 60
    batches = [batch for seed in range(3) for batch in _drawn(seed)]
    probabilities = module(batches[0]["x"]).softmax(-1)
    assert float(probabilities.max(-1).values.median().detach()) > 0.999
    found = profile(module, batches[:-2], ProfileOptions(), judging=batches[-2:])
    return module, found, batches[-2:]


def _drawn(seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(100 + seed)
    width = small_network.WIDTH
    return [{"x": torch.randn(32, width, generator=generator)} for _ in range(4)]


def test_what_is_kept_measures_best_and_predicts_what_was_measured() -> None:
    module, found, judging = certain_network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    selection = selected(module, found, judging)
    kept = [row for row in selection.tried if row.kept]
    assert len(kept) == 1
    assert kept[0].measured == min(row.measured for row in selection.tried)
    assert {row.name for row in selection.tried} >= {"two-sided", "input-weighted", "blended"}
    assert selection.plan.predicted_loss == pytest.approx(kept[0].measured, rel=1e-6)
    assert selection.plan.within_budget
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_certain_network_keeps_its_choices_at_least_as_well_as_the_simple_metrics_do() -> None:
    module, found, judging = certain_network()
    selection = selected(module, found, judging)
    readout, _ = choose_readout(module(**judging[0]))
    network = TrialNetwork(module, found, held_out_divergence(module, judging, readout))
    for metric in ("plain", "diagonal", "input-weighted"):
        simple = plan(found, "40%", PlanOptions(metric=metric))
        assert network.divergence(selection.plan) <= network.divergence(simple) * (1 + 1e-6)


def test_a_stopped_selection_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found, judging = certain_network()
    store = CheckpointFolder(tmp_path)
    whole = selected(module, found, judging, store=store)
    measured = []
    original = TrialNetwork.divergence
    monkeypatch.setattr(
        TrialNetwork,
        "divergence",
        lambda self, planned: measured.append(planned) or original(self, planned),
    )
    again = selected(module, found, judging, store=store)
    assert again == whole
    assert not measured
    store.path("measured", plan_digest(whole.plan)).unlink()
    assert selected(module, found, judging, store=store).plan == whole.plan
    assert len(measured) == 1


def test_the_digest_of_a_plan_sees_structures_and_the_metric_alone() -> None:
    _, found, _, _ = prepared()
    planned = plan(found, "50%")
    corrections = dict.fromkeys(planned.structures, 2.0)
    scaled = plan(found, "50%", replace(planned.options, corrections=corrections))
    assert plan_digest(scaled) == plan_digest(planned)
    other = replace(planned.layers[0], structure=LowRank(1))
    assert plan_digest(replace(planned, layers=(other, *planned.layers[1:]))) != plan_digest(
        planned
    )
    assert plan_digest(replace(planned, metric="blended")) != plan_digest(planned)


def test_a_profile_that_knows_nothing_of_the_output_is_refused() -> None:
    module, _, judging, _ = prepared()
    for made in (profile(module, None), profile(module, judging, ProfileOptions(metric="plain"))):
        with pytest.raises(PlanError, match="does not describe the output"):
            select(module, made, "50%", judging)
