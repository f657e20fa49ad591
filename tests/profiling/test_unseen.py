"""Classes of a head that the calibration data do not show are not free to lose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lrcompress.compression.compress import compress_
from lrcompress.layers import weight_matrix
from lrcompress.metrics import LayerMoments, Sensitivity
from lrcompress.network.batches import Batch
from lrcompress.network.readout import choose_readout, permuted
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling import unseen_classes as unseen
from lrcompress.profiling.profiler import profile
from lrcompress.profiling.unseen_classes import SHARE, unseen_classes, with_weight_prior

CLASSES, WIDTH, DIRECTIONS = 24, 32, 10


class Prototypes(nn.Module):
    """x: (examples, WIDTH) → scores of CLASSES, which lie in a few DIRECTIONS."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.body.weight.copy_(
                torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
            )
            rows = torch.zeros(CLASSES, WIDTH)
            rows[:, :DIRECTIONS] = torch.randn(CLASSES, DIRECTIONS, generator=generator)
            self.head.weight.copy_(4 * rows / rows.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(x)))

    def of_class(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs that the network takes for those classes."""
        features = self.head.weight.detach()[labels] / 4
        noisy = 3 * features + 0.1 * torch.randn(features.shape, generator=generator)
        return noisy @ self.body.weight.detach()


def network_and_batches(classes: int) -> tuple[Prototypes, list[Batch]]:
    torch.manual_seed(0)
    module = Prototypes().eval()
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(64) % classes
    x = module.of_class(labels, generator)
    return module, [{"x": part} for part in x.split(16)]


@pytest.mark.parametrize(("shown", "expected"), [(6, SHARE * 0.75), (CLASSES, None)])
def test_the_prior_has_the_share_of_the_classes_that_no_example_shows(
    shown: int, expected: float | None
) -> None:
    module, batches = network_and_batches(shown)
    readout, _ = choose_readout(module(batches[0]["x"]))
    found = unseen_classes(module, batches, readout)
    assert (None if found is None else found.share) == expected
    if found is not None:
        assert found.head == "head"
        assert f"{shown} of {CLASSES} classes" in found.note


def test_unseen_classes_survive_better_with_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {}
    for share in (SHARE, 0.0):
        monkeypatch.setattr(unseen, "SHARE", share)
        module, batches = network_and_batches(6)
        found = profile(module, batches)
        planned = plan(found, "40%", PlanOptions(allocator="uniform"))
        compress_(module, planned, found)
        generator = torch.Generator().manual_seed(2)
        labels = torch.arange(6, CLASSES).repeat(20)
        dense = network_and_batches(6)[0]
        x = dense.of_class(labels, generator)
        assert float((dense(x).argmax(-1) == labels).float().mean()) > 0.95
        right[share] = float((module(x).argmax(-1) == labels).float().mean())
    assert right[SHARE] > right[0.0] + 0.1


def test_a_profile_says_that_classes_are_unseen_and_keeps_it_in_its_readout() -> None:
    module, batches = network_and_batches(6)
    found = profile(module, batches)
    assert any("6 of 24 classes" in warning for warning in found.warnings)
    assert found.readout is not None
    assert found.readout.unseen == SHARE * 0.75


def test_permuting_keeps_each_probes_values_and_spreads_them_over_the_classes() -> None:
    v = torch.zeros(4000, 5)
    v[:, 0] = 1.0
    moved = permuted(v, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sort(-1).values, v.sort(-1).values)
    # half stay, the others land anywhere: 0.5 + 0.5 / 5, five standard errors of 4000 draws
    assert float(moved[:, 0].mean()) == pytest.approx(0.6, abs=5 * 0.5 / 4000**0.5)
    assert torch.equal(permuted(v, 0.0, torch.Generator().manual_seed(0)), v)


def test_the_weight_prior_keeps_the_trace_and_weighs_the_rows_of_the_head() -> None:
    module, _ = network_and_batches(6)
    weight = weight_matrix(module.head)
    seen = torch.zeros(1, WIDTH, WIDTH)
    seen[0, 0, 0] = 3.0
    moments = LayerMoments(
        input=seen,
        input_mean=torch.zeros(1, WIDTH),
        input_abs_mean=torch.zeros(1, WIDTH),
        rows=8,
        examples=8,
        sensitivity=Sensitivity(seen, torch.eye(CLASSES)[None] / CLASSES),
    )
    blended = with_weight_prior(moments, weight, 0.25)
    assert float(blended.input[0].trace()) == pytest.approx(3.0, rel=1e-5)
    assert blended.sensitivity is not None
    assert torch.equal(blended.sensitivity.input, blended.input)
    row = weight[0, 3] - weight[0].mean(0)
    assert float(row @ blended.input[0] @ row) > float(0.75 * row @ seen[0] @ row) + 0.01
    assert with_weight_prior(replace(moments, sensitivity=None), weight, 0.25).sensitivity is None
