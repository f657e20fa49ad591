"""Networks of nearly exactly low rank taken through the whole library, to compare outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import lrcompress
from lrcompress.formats.plan_json import plan_as
from lrcompress.network.batches import Batch
from lrcompress.network.outputs import tensors_of
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense, LowRank, Structure

RANK = 4
WIDTH = 24
# Rank RANK is exact up to the noise, which is this part of a weight's norm, through a few layers
NOISE = 1e-6
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def low_rank_(module: nn.Module) -> nn.Module:
    """Every weight of two axes or more gets rank RANK and a little noise."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() < 2 or min(parameter.shape[0], parameter[0].numel()) <= RANK:
            continue
        m, n = parameter.shape[0], parameter[0].numel()
        product = torch.randn(m, RANK, generator=generator) @ torch.randn(
            RANK, n, generator=generator
        )
        noise = NOISE * torch.randn(m, n, generator=generator)
        scaled = (product / RANK**0.5 + noise) / n**0.5
        with torch.no_grad():
            parameter.copy_(scaled.reshape(parameter.shape))
    return module.eval()


def rows(*shape: int, count: int = 4, name: str = "x") -> list[Batch]:
    def drawn(seed: int) -> Tensor:
        return torch.randn(8, *shape, generator=torch.Generator().manual_seed(seed))

    return [{name: drawn(seed)} for seed in range(count)]


def ids(high: int, *shape: int, count: int = 4, name: str = "x") -> list[Batch]:
    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(high, (8, *shape), generator=generator)

    return [{name: drawn(seed)} for seed in range(count)]


def plan_of_rank(profiled: Profile) -> Plan:
    """Rank RANK for every layer that is large enough for it."""
    plan = lrcompress.plan(profiled, "100%")
    structures: dict[str, Structure] = {
        layer.name: LowRank(RANK)
        if min(layer.spec.out_features, layer.spec.in_features) >= 2 * RANK
        else Dense()
        for layer in profiled.layers
    }
    return plan_as(profiled, plan.budget, plan.options, structures)


def compressed(module: nn.Module, batches: Sequence[Batch]) -> tuple[nn.Module, Profile, Plan]:
    """A copy of the network with rank RANK in the place of every layer that may change."""
    other = copy.deepcopy(module)
    profiled = lrcompress.profile(other, batches)
    plan = plan_of_rank(profiled)
    lrcompress.compress_(other, plan, profiled, batches=batches)
    return other, profiled, plan


def outputs(module: nn.Module, batch: Batch) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_of(module(**{name: x.clone() for name, x in batch.items()})))


def assert_same(dense: nn.Module, other: nn.Module, batch: Batch) -> None:
    ours, theirs = outputs(other, batch), outputs(dense, batch)
    assert len(ours) == len(theirs) > 0
    for one, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, wanted, **CLOSE)


def assert_exports(dense: nn.Module, other: nn.Module, batch: Batch, path: Path) -> None:
    """The file passes every check and computes what the dense network computes."""
    lrcompress.export_onnx(other, batch, path)
    report = lrcompress.verify(path, other, batch)
    assert report.ok, report.failed
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {name: x.numpy() for name, x in batch.items()})
    for one, wanted in zip(got, outputs(dense, batch), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), wanted, **CLOSE)


def reason_of(profiled: Profile, name: str) -> str:
    return next(item.reason for item in profiled.left_alone if item.name == name)


Make = Callable[[], nn.Module]
