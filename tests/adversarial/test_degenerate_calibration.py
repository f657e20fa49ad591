"""Claims of degenerate calibration: what the data cannot show is named, and never passes for good.

On each of these data sets predicted and measured divergence are next to nothing, whatever becomes
of the layers.
"""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor, nn

from adversarial.carried_out import CarriedOut, carry_out
from lrcompress.errors import DataError, ModelError
from lrcompress.formats.profile_json import load_profile, save_profile
from lrcompress.network.batches import Batch
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.structures import Dense, LowRank

WIDTH, HIDDEN, CLASSES = 12, 24, 3


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return torch.as_tensor(self.head(h))


def classifier() -> nn.Module:
    module = Classifier()
    with torch.no_grad():
        module.head.weight *= 10.0
    return module.eval()


def drawn(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def in_batches(x: Tensor, size: int = 8) -> list[Batch]:
    return [{"x": part} for part in torch.split(x, size)]


def the_doubts(found: CarriedOut) -> str:
    assert all(doubt.startswith("not to be trusted: ") for doubt in found.doubts)
    return "\n".join(found.doubts)


DATA: dict[str, tuple[list[Batch], str]] = {
    "one example": (in_batches(drawn(1)), "the calibration data hold a single example"),
    "zeros": (in_batches(torch.zeros(32, WIDTH)), "inputs is the same ('x' 0)"),
    "a constant": (in_batches(torch.full((32, WIDTH), 0.25)), "inputs is the same ('x' 0.25)"),
    "tiny": (in_batches(1e-30 * drawn(32)), "whose square is zero in float32"),
    "identical": (in_batches(drawn(1).repeat(32, 1)), "all 28 calibration examples are the same"),
    "identical, one by one": (
        in_batches(drawn(1).repeat(32, 1), 1),
        "all 28 calibration examples are the same",
    ),
    "mostly repeats": (
        in_batches(torch.cat([drawn(1).repeat(40, 1), drawn(8, 2)])[torch.randperm(48)]),
        "calibration examples are repeats",
    ),
    "too small to tell apart": (
        in_batches(1e-12 * drawn(32)),
        "the network gives the same output for all calibration examples",
    ),
    "two examples": (in_batches(drawn(2)), "no example could be set aside"),
    "five examples": (in_batches(drawn(5)), "no example could be set aside"),
    "seven examples": (in_batches(drawn(7)), "examples set aside are too few"),
}


JUDGED = ("mostly repeats", "two examples", "five examples", "seven examples")


@pytest.mark.parametrize("case", DATA)
def test_data_that_show_nothing_are_named_and_doubted(case: str) -> None:
    batches, said = DATA[case]
    found = carry_out(classifier(), batches, "60%")
    assert said in the_doubts(found)
    for reason in found.profile.degenerate:
        assert f"degenerate calibration: {reason}" in found.profile.warnings
    # Known to be worth nothing, or only not known to be good
    assert found.is_known_bad == bool(found.profile.degenerate) == (case not in JUDGED)


def test_sound_data_are_not_doubted_for_it() -> None:
    found = carry_out(classifier(), in_batches(drawn(256)), "85%")
    assert found.profile.degenerate == ()
    assert not any("degenerate" in warning for warning in found.profile.warnings)


def test_one_token_repeated_is_named() -> None:
    ids = torch.full((24, 6), 5)
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in torch.split(ids, 8)]
    torch.manual_seed(0)
    found = carry_out(networks.Attention().eval(), batches, "80%")
    assert "('input_ids' 5)" in the_doubts(found)


def test_texts_that_differ_in_padding_alone_are_one() -> None:
    ids = torch.zeros(8, 6, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    ids[:, :3], mask[:, :3] = torch.tensor([3, 4, 5]), 1
    ids[4:, 3:] = 9  # what stands in padding means nothing
    torch.manual_seed(0)
    module = networks.Attention().eval()
    found = profile(module, [{"input_ids": ids, "attention_mask": mask}])
    assert found.degenerate == ("all 8 calibration examples are the same",)


# ---- networks on which the data show nothing ----------------------------------------------------


def all_zero() -> nn.Module:
    module = classifier()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


def constant_output() -> nn.Module:
    module = classifier()
    with torch.no_grad():
        module.get_parameter("head.weight").zero_()
    return module


def saturated() -> nn.Module:
    module = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).eval()
    with torch.no_grad():
        module.get_parameter("0.bias").fill_(100.0)
    return Renamed(module)


def normalised_away() -> nn.Module:
    module = nn.Sequential(
        nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, CLASSES)
    ).eval()
    with torch.no_grad():
        module.get_parameter("1.weight").zero_()
    return Renamed(module)


class Renamed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(x))


@pytest.mark.parametrize("make", [all_zero, constant_output, saturated, normalised_away])
def test_an_output_that_follows_no_input_is_named(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    found = carry_out(make(), in_batches(drawn(32)), "75%")
    assert "the network gives the same output for all calibration examples" in the_doubts(found)


class DeadBranch(nn.Module):
    """A large branch whose ReLU lets nothing through on data like the calibration's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.dead = nn.Linear(WIDTH, HIDDEN)
        self.after = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        with torch.no_grad():
            self.dead.bias.fill_(-50.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x)) + self.after(torch.relu(self.dead(x)))
        return torch.as_tensor(self.head(h))


def test_dead_layers_are_named_with_their_share_and_keep_what_matters_elsewhere() -> None:
    """At no cost on the data they would be cut to rank one. On other data they are needed."""
    found = carry_out(DeadBranch().eval(), in_batches(drawn(64)), "70%")
    (reason,) = found.profile.thin
    assert "do not show what 71% of the compressible weights do (dead, after)" in reason
    assert reason in the_doubts(found)
    warnings = found.profile.warnings
    assert any(w.startswith("dead: the measured output does not change") for w in warnings)
    assert any(w.startswith("after: its inputs are zero on all") for w in warnings)
    structure = found.plan["after"].structure
    assert isinstance(structure, LowRank | Dense)
    assert isinstance(structure, Dense) or structure.rank > 2


def test_what_is_degenerate_is_kept_in_the_file(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    found = profile(classifier(), in_batches(drawn(1)), ProfileOptions(trials=False))
    save_profile(found, tmp_path)
    assert load_profile(tmp_path).degenerate == found.degenerate != ()


# ---- what no profile can be made from -----------------------------------------------------------


def test_inputs_too_large_for_float32_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"first: its inputs on the calibration data are .*large"):
        profile(classifier(), in_batches(1e30 * drawn(32)))


def test_labels_alone_are_refused() -> None:
    with pytest.raises(DataError, match="cannot run on a batch of labels"):
        profile(classifier(), [{"labels": torch.zeros(8, dtype=torch.int64)}])
