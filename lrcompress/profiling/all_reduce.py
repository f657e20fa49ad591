"""Reduce the collectors of several processes, each of which saw its share of the batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.distributed import all_reduce_, gathered, world_size
from lrcompress.profiling.collector import Collector
from lrcompress.profiling.gauss_newton_factors import GaussNewtonFactors
from lrcompress.profiling.input_moments import InputMoment
from lrcompress.profiling.second_moment import SecondMoment, SymmetricSum

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Parts:
    """Shapes and count of one running sum in one process."""

    shapes: Mapping[str, Shape]
    count: int = 0  # rows of an input moment


def agree_(collector: Collector) -> None:
    """Synchronise the input groups and their consistency across processes."""
    if world_size() == 1:
        return
    own = (collector.leaders, collector.consistent, collector.without_gradient)
    leaders: dict[str, str] = {}
    for theirs, consistent, without_gradient in gathered(own):
        for name, leader in theirs.items():
            if leaders.setdefault(name, leader) != leader:
                collector.consistent = False
        collector.consistent &= consistent
        collector.without_gradient |= without_gradient
    collector.leaders = leaders


def sum_(collector: Collector) -> None:
    """Sum the running sums across processes, so that each holds the sums over all batches.

    Only the order of the float64 sums differs from that of a single process. A layer that one
    process's batches never reached contributes zero there.
    """
    if world_size() == 1:
        return
    devices = {watch.name: _device(watch.module) for watch in collector.watches}
    for name, parts in _everybodys({n: _moment_parts(m) for n, m in collector.inputs.items()}):
        moment = collector.inputs.setdefault(name, InputMoment())
        device = devices[name]
        moment.first = _sum(moment.first, parts.shapes["first"], device)
        moment.absolute = _sum(moment.absolute, parts.shapes["absolute"], device)
        _sum_second_(moment.seconds, parts.shapes["second"], device)
        moment.rows = parts.count
    for name, parts in _everybodys({n: _joint_parts(j) for n, j in collector.joints.items()}):
        joint = collector.joints.setdefault(name, GaussNewtonFactors())
        device = devices[name]
        _sum_second_(joint.inputs, parts.shapes["inputs"], device)
        _sum_second_(joint.outputs, parts.shapes["outputs"], device)
        if "cross" in parts.shapes:  # embedding lookups have none
            joint.cross = _sum(joint.cross, parts.shapes["cross"], device)
            joint.bias = _sum(joint.bias, parts.shapes["bias"], device)


def _moment_parts(moment: InputMoment) -> _Parts:
    parts = {"second": moment.second, "first": moment.first, "absolute": moment.absolute}
    return _Parts(_shapes(parts), moment.rows)


def _joint_parts(joint: GaussNewtonFactors) -> _Parts:
    parts = {
        "inputs": joint.inputs.whole(),
        "outputs": joint.outputs.whole(),
        "cross": joint.cross,
        "bias": joint.bias,
    }
    return _Parts(_shapes(parts))


def _shapes(parts: Mapping[str, Tensor | None]) -> dict[str, Shape]:
    return {name: tuple(part.shape) for name, part in parts.items() if part is not None}


def _everybodys(own: Mapping[str, _Parts]) -> list[tuple[str, _Parts]]:
    """Gather the parts of all processes by name, in the same order everywhere; counts are added.

    Shapes are the same in every process that has the sum.
    """
    found: dict[str, _Parts] = {}
    for theirs in gathered(dict(own)):
        for name, parts in theirs.items():
            count = parts.count + (found[name].count if name in found else 0)
            found[name] = _Parts(parts.shapes, count)
    return list(found.items())


def _sum_second_(moment: SecondMoment, shape: Shape, device: torch.device) -> None:
    """Sum a second moment across processes. shape: (g, k, k), or (g, k) for a diagonal."""
    if len(shape) == 2:
        moment.diagonal = _sum(moment.diagonal, shape, device)
        return
    if moment.full is None:
        moment.full = SymmetricSum(shape[0], shape[1], device)
    all_reduce_(moment.full.whole())


def _sum(own: Tensor | None, shape: Shape, device: torch.device) -> Tensor:
    """Sum across processes into a new tensor: the three sums of a lookup share one tensor."""
    if own is None:
        return all_reduce_(torch.zeros(shape, dtype=torch.float64, device=device))
    return all_reduce_(own.clone(memory_format=torch.contiguous_format))


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
