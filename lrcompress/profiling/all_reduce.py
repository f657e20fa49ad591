"""Reduce the collectors of several processes, each of which saw its share of the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lrcompress.distributed import all_reduce_, gathered, world_size
from lrcompress.profiling.collector import Collector
from lrcompress.profiling.gauss_newton_factors import GaussNewtonFactors
from lrcompress.profiling.input_moments import InputMoment
from lrcompress.profiling.second_moment import SecondMoment, SymmetricSum

Shape = tuple[int, ...]
_Sums = TypeVar("_Sums", InputMoment, GaussNewtonFactors)


def synchronise_(collector: Collector) -> None:
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
    _sum_all_(collector.inputs, InputMoment, collector.watched)
    _sum_all_(collector.joints, GaussNewtonFactors, collector.watched)
    rows = gathered({name: moment.rows for name, moment in collector.inputs.items()})
    for name, moment in collector.inputs.items():
        moment.rows = sum(theirs[name] for theirs in rows)


def _sum_all_(
    sums: dict[str, _Sums], new: Callable[[], _Sums], watched: Mapping[str, nn.Module]
) -> None:
    own = {name: _shapes(held) for name, held in sums.items()}
    everywhere = {name: shapes for theirs in gathered(own) for name, shapes in theirs.items()}
    for name, shapes in everywhere.items():
        device = next(watched[name].parameters()).device
        held = sums.setdefault(name, new())
        for field, shape in shapes.items():
            part = getattr(held, field)
            if isinstance(part, SecondMoment):
                _sum_second_(part, shape, device)
            else:
                setattr(held, field, _sum(part, shape, device))


def _shapes(sums: InputMoment | GaussNewtonFactors) -> dict[str, Shape]:
    """Shapes of the sums that this process has, by field; they are the same in every process."""
    parts = {
        field: value.whole() if isinstance(value, SecondMoment) else value
        for field, value in vars(sums).items()
    }
    return {field: tuple(x.shape) for field, x in parts.items() if isinstance(x, Tensor)}


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
