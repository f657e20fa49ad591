"""Claims of the refit's target: it is the least-squares weight of what the layer really computes.

The closed form is worked out apart from the code under test: a layer is linear in its weight, so
its outputs for unit weights are the columns of a design matrix, whatever kind of layer it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrcompress.compression import refit
from lrcompress.compression.fit import layer_bias
from lrcompress.compression.refit import Refit, Target
from lrcompress.compression.replace import Replacement, install_
from lrcompress.layers import weight_matrix
from lrcompress.network.batches import Batch
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.structures import (
    CP,
    Blast,
    BlockDiagonal,
    Factors,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    SpatialLowRank,
    Structure,
    Tucker2,
)

FP32 = 1e-3  # of the weight: float32 rows (6e-8) through normal equations of condition 1e3 to 1e4


class HeldOutDivergence:
    """Takes every proposal."""

    def __init__(self) -> None:
        self._next = 0.0

    def divergence(self, module: nn.Module) -> float:
        self._next -= 1.0
        return self._next


class Net(nn.Module):
    """A layer that is changed, and the layer under test that reads what it gives."""

    def __init__(self, layer: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = first, layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(self.first(x) + 2.0))  # inputs far from centred


def linear(*, bias: bool) -> Net:
    return Net(nn.Linear(8, 12, bias=bias), nn.Linear(8, 8))


def conv(groups: int, *, bias: bool, spatial: int = 2) -> Net:
    make: Any = (nn.Conv1d, nn.Conv2d)[spatial - 1]
    return Net(make(4, 8, 3, padding=1, groups=groups, bias=bias), make(4, 4, 1))


def batches_for(net: Net) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    spatial = getattr(net.layer, "kernel_size", ())
    shape = (4, *(5,) * len(spatial)) if spatial else (8,)
    return [{"x": torch.randn(12, *shape, generator=generator)} for _ in range(4)]


def shifted(first: nn.Module) -> nn.Module:
    """What stands in the first layer's place: far enough away to be seen."""
    other = type(first)(**_sizes(first))
    other.load_state_dict({k: v + 0.2 * torch.randn_like(v) for k, v in first.state_dict().items()})
    return other


def _sizes(first: nn.Module) -> dict[str, Any]:
    if isinstance(first, nn.Linear):
        return {"in_features": first.in_features, "out_features": first.out_features}
    assert isinstance(first, nn.Conv1d | nn.Conv2d)
    sizes = ("in_channels", "out_channels", "kernel_size")
    return {name: getattr(first, name) for name in sizes}


def proposed(
    net: Net,
    structure: Structure,
    monkeypatch: pytest.MonkeyPatch,
    options: ProfileOptions | None = None,
) -> tuple[Tensor, list[Batch], nn.Module]:
    """The weight that the structure was asked to fit, and what the layer's inputs came from."""
    monkeypatch.setattr(refit, "WEIGHT_STEP", 1.0)
    monkeypatch.setattr(refit, "DAMPING", 1e-12)
    batches = batches_for(net)
    found = profile(net, batches, options or ProfileOptions(trials=False))
    wanted: list[Tensor] = []
    plain = type(structure).fit

    def spy(self: Structure, weight: Tensor, *rest: Any, **named: Any) -> Factors:
        wanted.append(weight)
        return plain(self, weight, *rest, **named)

    layer, spec = net.layer, found["layer"].spec
    factors = structure.fit(weight_matrix(layer).double(), _whitening(found), spec)
    other = shifted(net.first)
    before = Replacement("first", net.first, other)
    net.first = other
    changes = [before, *install_(net, spec, structure, factors, layer_bias(layer))]
    target = Target(found["layer"], structure, changes[1], factors)
    run = Refit(net, [target], found, "two-sided", HeldOutDivergence(), changes)  # type: ignore[arg-type]
    monkeypatch.setattr(type(structure), "fit", spy)
    run.run_(batches, refit_progress())
    (weight,) = wanted
    return weight, batches, before.original


def refit_progress() -> Any:
    from lrcompress.progress import SILENT

    return SILENT


def _whitening(found: Profile) -> Any:
    from lrcompress.compression.fit import layer_whitening

    return layer_whitening(found["layer"], "two-sided", found.moments["layer"])


def least_squares(layer: Any, inputs: Tensor, outputs: Tensor, *, free_mean: bool) -> Tensor:
    """The weight whose layer gives the outputs best; free_mean: up to a constant a channel."""
    weight = layer.weight.detach().double()
    columns = []
    for place in range(weight.numel()):
        unit = torch.zeros(weight.numel(), dtype=torch.float64)
        unit[place] = 1.0
        given = {"weight": unit.reshape(weight.shape)}
        if layer.bias is not None:
            given["bias"] = torch.zeros_like(layer.bias, dtype=torch.float64)
        columns.append(_centred(functional_call(layer, given, (inputs.double(),)), free_mean))
    design = torch.stack([c.flatten() for c in columns], 1)
    wanted = _centred(outputs.double(), free_mean).flatten()
    solved = torch.linalg.lstsq(design, wanted.unsqueeze(1), driver="gelsd").solution
    return torch.as_tensor(solved.reshape(weight.shape))


def _centred(values: Tensor, free_mean: bool) -> Tensor:  # noqa: FBT001
    if not free_mean:
        return values
    dims = [0, *range(2, values.dim())]
    return values - values.mean(dims, keepdim=True)


@torch.no_grad()
def expected(net: Net, batches: list[Batch], dense: nn.Module, *, free_mean: bool) -> Tensor:
    x = torch.cat([batch["x"] for batch in batches])
    original = net_layer(net)
    wanted = original(dense(x) + 2.0)
    if original.bias is not None:
        shape = (1, -1, *(1,) * (wanted.dim() - 2))
        wanted = wanted - original.bias.reshape(shape)
    return least_squares(original, net.first(x) + 2.0, wanted, free_mean=free_mean)


def net_layer(net: Net) -> Any:
    original = net.__dict__["_original"]
    assert isinstance(original, nn.Module)
    return original


def remembered(net: Net) -> Net:
    net.__dict__["_original"] = net.layer
    return net.eval()


CASES = {
    "linear": lambda bias: linear(bias=bias),
    "conv1d": lambda bias: conv(1, bias=bias, spatial=1),
    "conv2d": lambda bias: conv(1, bias=bias),
    "grouped conv2d": lambda bias: conv(2, bias=bias),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_the_target_is_the_closed_form(
    kind: str, *, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bias the weight has to give the mean as well; with one it need not."""
    torch.manual_seed(0)
    net = remembered(CASES[kind](bias))
    weight, batches, dense = proposed(net, LowRank(2), monkeypatch)
    wanted = expected(net, batches, dense, free_mean=bias)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(weight.reshape(wanted.shape), wanted, rtol=0, atol=FP32 * scale)
    if not bias:
        centred = expected(net, batches, dense, free_mean=True)
        assert float((centred - wanted).abs().max()) > 20 * FP32 * scale  # the claim is not empty


class SharesBias(Net):
    """The bias is the first layer's too, so that it cannot move."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.Linear(8, 8))
        assert isinstance(self.layer, nn.Linear)
        assert isinstance(self.first, nn.Linear)
        self.layer.bias = self.first.bias


@pytest.mark.parametrize("case", ["shared", "told to stay"])
def test_a_bias_that_may_not_move_takes_up_no_mean(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = remembered(SharesBias() if case == "shared" else linear(bias=True))
    options = ProfileOptions(trials=False, bias_compensation=case == "shared")
    bias = net.layer.bias
    assert isinstance(bias, Tensor)
    held = bias.detach().clone()
    weight, batches, dense = proposed(net, LowRank(2), monkeypatch, options)
    wanted = expected(net, batches, dense, free_mean=False)
    atol = FP32 * float(wanted.abs().max())
    torch.testing.assert_close(weight[0], wanted, rtol=0, atol=atol)
    after = net.layer.bias
    assert isinstance(after, Tensor)
    assert torch.equal(after, held)


STRUCTURES: list[tuple[Structure, str]] = [
    (LowRank(3), "linear"),
    (Blast(2, blocks=2), "linear"),
    (Interpolative(4, chunk=2), "linear"),
    (BlockDiagonal(1, blocks=2), "linear"),
    (Monarch(1, blocks=2), "linear"),
    (Kronecker(1), "linear"),
    (Tucker2(2, 2), "conv2d"),
    (SpatialLowRank(2), "conv2d"),
    (CP(3), "conv2d"),
]


@pytest.mark.parametrize(("structure", "kind"), STRUCTURES, ids=lambda x: str(x))
def test_every_structure_is_given_the_same_target_and_adds_no_bias(
    structure: Structure, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = remembered(CASES[kind](False))
    weight, batches, dense = proposed(net, structure, monkeypatch)
    wanted = expected(net, batches, dense, free_mean=False)
    atol = FP32 * float(wanted.abs().max())
    torch.testing.assert_close(weight.reshape(wanted.shape), wanted, rtol=0, atol=atol)
    assert not [name for name, _ in net.layer.named_parameters() if "bias" in name]


def test_a_refitted_layer_without_a_bias_gives_the_mean_of_the_dense_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At full rank nothing but the target decides: the output's mean is the dense one's."""
    torch.manual_seed(0)
    net = remembered(linear(bias=False))
    dense = net.first
    _, batches, _ = proposed(net, LowRank(8), monkeypatch)
    x = torch.cat([batch["x"] for batch in batches])
    with torch.no_grad():
        wanted = net_layer(net)(dense(x) + 2.0).mean(0)
        torch.testing.assert_close(net(x).mean(0), wanted, rtol=0.02, atol=0.02)
