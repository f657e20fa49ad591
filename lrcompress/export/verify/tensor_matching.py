"""Match the stored constants of a graph with the network's tensors, and compare their values.

In a file that keeps the network's names, a tensor is looked up by name. Otherwise it is looked up
by its values, in every order of its axes and in any shape. Equal means equal up to rounding to the
stored dtype. A stored tensor that is near one of the network's but equals none was changed. A
network tensor that resembles no constant (an optimiser merged it with others) counts as absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.graph.stored_constants import Order, Stored, probe_places
from lrcompress.messages import label

# Twice the unit roundoff: the rounding of the file, and that of the computation of the value
ROUNDING: Mapping[str, float] = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
# The keys are onnx_ir's names of dtypes, in lower case
PRECISIONS = {"float": "fp32", "double": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_SMALLEST = {"fp32": 2.0**-126, "fp16": 1.01e-7, "bf16": 2.0**-126}  # below: flushed to zero
_NEAR = 0.1  # of the tensor's scale: tensors that differ by more are unrelated
_MOST = 0.75  # share of nearly equal values by which a changed tensor is recognised
_FEW = 16  # a tensor with fewer values may be near another by chance


@dataclass(frozen=True, eq=False)
class Target:
    """A tensor that the graph should contain: float32 or integers, on the CPU."""

    name: str
    values: Tensor
    roundings: int = 1  # number of roundings of each value, for a computed tensor
    extra: float = 0.0  # additional absolute error, where terms may cancel

    @property
    def size(self) -> int:
        return self.values.numel()

    def probe(self) -> NDArray[np.float64]:
        flat = self.values.reshape(-1)
        picked = flat[torch.from_numpy(probe_places(self.size))]
        probe: NDArray[np.float64] = picked.double().numpy()
        return probe


@dataclass(frozen=True)
class Difference:
    tensor: str  # name in the network
    stored: str  # name in the graph
    error: float = inf  # largest difference, relative to the root mean square
    row: int = 0  # index on the tensor's first axis of the largest difference
    fault: Literal["values", "shape", "swapped"] = "values"

    def __str__(self) -> str:
        if self.fault == "swapped":
            return f"{label(self.stored)} holds the values of {label(self.tensor)}"
        if self.fault == "shape":
            return f"{label(self.stored)} has another size or type than {label(self.tensor)}"
        name = label(self.tensor)
        if parameter_name(self.stored) != self.tensor:
            name += f" (stored as {label(self.stored)})"
        if self.error == inf:  # one of the two is not finite, or the network's are all zero
            return f"{name} differs in row {self.row}"
        return f"{name} is off by {self.error:.1e} of its scale in row {self.row}"


@dataclass(frozen=True, eq=False)
class Matches:
    found: Mapping[str, Stored]  # tensors that are stored unchanged
    differing: tuple[Difference, ...]
    absent: tuple[str, ...]


class Constants:
    """The constants of a graph, for lookup by name and by value.

    names: for each parameter, the constants that hold it by name, possibly several copies (plain
        and transposed); empty if the file does not keep the network's names.
    in_codes: names of constants that the file holds in codes, so that no tracer computed with them.
    """

    def __init__(
        self,
        stored: Iterable[Stored],
        precision: str,
        names: Mapping[str, Sequence[Stored]],
        in_codes: Collection[str] = (),
    ):
        self.precision, self.names, self.in_codes = precision, names, in_codes
        self.holders = {id(one): name for name, copies in names.items() for one in copies}
        self.by_size: dict[int, list[Stored]] = defaultdict(list)
        for one in stored:
            self.by_size[one.size].append(one)

    def match(self, targets: Sequence[Target]) -> Matches:
        found: dict[str, Stored] = {}
        changed: list[tuple[Difference, Stored]] = []
        unnamed: list[Target] = []
        for target in targets:
            compared = [(self._difference(target, n), n) for n in self.names.get(target.name, ())]
            equal = next((one for difference, one in compared if difference is None), None)
            different = [
                (difference, one)
                for difference, one in compared
                if difference is not None and self._is_its_own(target, one, equal)
            ]
            changed += different
            if equal is not None:
                found[target.name] = equal
            elif not different:
                unnamed.append(target)
        closed = {id(one) for one in found.values()} | {id(one) for _, one in changed}
        lost: list[Target] = []
        for target in unnamed:
            equal = self._equal(target)
            if equal is None:
                lost.append(target)
                continue
            found[target.name] = equal
            closed.add(id(equal))
            holder = self.holders.get(id(equal))
            if target.name in self.names and holder not in (None, target.name):
                changed.append((Difference(target.name, equal.name, fault="swapped"), equal))
        absent: list[str] = []
        # There may be a changed copy of a tensor that is also stored unchanged
        for target in (*lost, *(target for target in targets if target.name in found)):
            # In a file that keeps names, the tracer computed whatever only resembles a tensor
            near = None if self.names else self._nearest(target, closed)
            if near is not None:
                closed.add(id(near[1]))
                changed.append(near)
            elif target.name not in found:
                absent.append(target.name)
        return Matches(found, tuple(difference for difference, _ in changed), tuple(absent))

    def look_up(self, target: Target) -> Stored | Difference | None:
        """Look up by value only: return the equal constant, or how the nearest one differs."""
        near = self._nearest(target, set())
        return self._equal(target) or (None if near is None else near[0])

    def unlike(self, targets: Iterable[Target]) -> tuple[Stored, ...]:
        """Return the floating-point constants that equal none of the targets."""
        by_size: dict[int, list[Target]] = defaultdict(list)
        for target in targets:
            if target.values.is_floating_point():
                by_size[target.size].append(target)
        return tuple(
            one
            for size, same in self.by_size.items()
            for one in same
            if not one.whole and not any(self._equals(target, one) for target in by_size[size])
        )

    def _equals(self, target: Target, one: Stored) -> bool:
        orders = self._equal_orders(target, one)
        return any(self._compare(target, one, order) is None for order in orders)

    def _equal(self, target: Target) -> Stored | None:
        return next((one for one in self._of_its_kind(target) if self._equals(target, one)), None)

    def _of_its_kind(self, target: Target) -> Iterator[Stored]:
        whole = not target.values.is_floating_point()
        return (one for one in self.by_size.get(target.size, ()) if one.whole == whole)

    def _difference(self, target: Target, one: Stored) -> Difference | None:
        """Return how a constant that should hold the target differs; None if it is equal."""
        if one.size != target.size or one.whole == target.values.is_floating_point():
            return Difference(target.name, one.name, fault="shape")
        distances = np.abs(one.probes - target.probe())  # (orders, probes)
        best = one.orders[int(np.argmin(np.median(distances, axis=1) + distances.mean(axis=1)))]
        orders = (*self._equal_orders(target, one), best)
        differences = [self._compare(target, one, order) for order in orders]
        return None if None in differences else differences[-1]

    def _near(self, target: Target, one: Stored) -> bool:
        return one in self._of_its_kind(target) and bool(_is_near(target.probe(), one).any())

    def _is_its_own(self, target: Target, one: Stored, equal: Stored | None) -> bool:
        """Whether a constant of the parameter's name should hold it, and not a function of it."""
        held = one.name in self.in_codes or self._near(target, one)
        return held or self._copy(one, equal)

    def _copy(self, one: Stored, equal: Stored | None) -> bool:
        """Whether `one` should be a copy of `equal`, which holds the parameter of its name."""
        return equal is not None and (one.size, one.whole) == (equal.size, equal.whole)

    def _nearest(self, target: Target, closed: set[int]) -> tuple[Difference, Stored] | None:
        """Return a constant not in `closed` that resembles the target, and the difference."""
        if target.size < _FEW:
            return None
        probe = target.probe()
        for one in self._of_its_kind(target):
            if id(one) not in closed:
                for index in np.flatnonzero(_is_alike(probe, one)):
                    difference = self._compare(target, one, one.orders[index])
                    if difference is not None:
                        return difference, one
        return None

    def _equal_orders(self, target: Target, one: Stored) -> list[Order]:
        probe = target.probe()
        allowed = self._allowed(probe, target, one)
        equal: NDArray[np.bool_] = np.all(np.abs(one.probes - probe) <= allowed, axis=1)
        return [order for order, holds in zip(one.orders, equal, strict=True) if holds]

    def _allowed(self, values: NDArray[Any], target: Target, one: Stored) -> NDArray[Any]:
        if one.whole:
            return np.zeros(values.shape)
        names = (self.precision, PRECISIONS[one.dtype])
        rounding = max(ROUNDING[name] for name in names)
        allowed: NDArray[Any] = target.roundings * rounding * np.abs(values)
        return allowed + max(target.extra, *(_SMALLEST[name] for name in names))

    def _compare(self, target: Target, one: Stored, order: Order) -> Difference | None:
        """Compare every value; return None if all are equal up to rounding."""
        flat = target.values.reshape(-1)
        start, worst, place, total = 0, 0.0, -1, 0.0
        for theirs in one.chunks(order):
            ours = flat[start : start + len(theirs)].numpy()
            with np.errstate(invalid="ignore"):
                excess = np.abs(theirs - ours, dtype=np.float64)
                wrong = ~((excess <= self._allowed(ours, target, one)) | (theirs == ours))
            wrong &= ~(np.isnan(ours) & np.isnan(theirs))
            total += float(np.square(ours, dtype=np.float64).sum())
            if wrong.any():
                excess = np.where(wrong, np.nan_to_num(excess, nan=inf), -1.0)
                index = int(excess.argmax())
                if excess[index] > worst or place < 0:
                    worst, place = float(excess[index]), start + index
            start += len(theirs)
        if place < 0:
            return None
        scale = sqrt(total / target.size)
        row = place // max(1, target.size // max(1, (*target.values.shape, 1)[0]))
        return Difference(target.name, one.name, worst / scale if scale > 0 else inf, row)


def _is_near(probe: NDArray[np.float64], one: Stored) -> NDArray[np.bool_]:
    """Whether the median difference is small, for each order of axes; outliers do not matter."""
    scale = sqrt(float(np.square(probe).mean()))
    near: NDArray[np.bool_] = np.median(np.abs(one.probes - probe), axis=1) <= _NEAR * scale
    return near & (scale > 0)


def _is_alike(probe: NDArray[np.float64], one: Stored) -> NDArray[np.bool_]:
    """Whether most values are nearly equal, for each order of axes, when names do not match.

    Differences must be small relative to each value and to the standard deviation. The weights of
    any two norms are near one, and a multiple of a tensor is near it where the tensor is near zero.
    """
    allowed = _NEAR * np.minimum(np.abs(probe), probe.std())
    alike: NDArray[np.bool_] = (np.abs(one.probes - probe) <= allowed).mean(axis=1) >= _MOST
    return alike & bool(np.any(allowed > 0))
