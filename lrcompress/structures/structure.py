"""The interface of a structure: a hashable value that describes the replacement of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.metrics import Whitening

# Factors of one layer by name; `Structure.factor_shapes` gives their shapes.
Factors = Mapping[str, Tensor]

ALL_KINDS: frozenset[Kind] = frozenset(
    ("linear", "transposed_linear", "embedding", "conv1d", "conv2d")
)
LINEAR_KINDS: frozenset[Kind] = frozenset(("linear", "transposed_linear"))


@dataclass(frozen=True)
class Place:
    """The parameter that holds a factor, and whether it holds the transposed factor."""

    path: str  # dotted, within the module
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class FitTask:
    """The arguments of `Structure.fit`."""

    weight: Tensor  # (groups, m, n)
    whitening: Whitening
    spec: LayerSpec
    quick: bool = False
    start: Factors | None = None


class Structure(ABC):
    """A frozen dataclass whose fields are the sizes of the factors."""

    type_name: ClassVar[str]  # name in plan.json and in the STRUCTURES table
    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS  # kinds of layers that it can replace
    tried_by_default: ClassVar[bool] = True  # whether --structures auto tries it

    def takes_large(self, weight: Tensor, whitening: Whitening) -> bool:
        """Whether `fit` and `loss` take the weight in its own dtype, block by block, instead of a
        copy in float64."""
        return False

    def loss(
        self, factors: Factors, weight: Tensor, whitening: Whitening, spec: LayerSpec
    ) -> float:
        """The loss of the factors in the metric."""
        return float(whitening.loss(weight - self.dense(factors, spec)))

    def check(self, spec: LayerSpec) -> None:
        """Raise PlanError, naming the layer, if the structure cannot replace the layer."""
        if spec.kind not in self.kinds:
            kinds = ", ".join(sorted(self.kinds))
            raise PlanError(
                f"{spec.name}: {self.type_name} can replace {kinds}, not {spec.kind}; "
                "use low_rank or dense"
            )
        self._check_integers(spec)
        self.check_sizes(spec)

    def _check_integers(self, spec: LayerSpec) -> None:
        """Raise PlanError unless every size is an integer from 0 to the weight's parameters."""
        assert is_dataclass(self)
        for name in (field.name for field in fields(self) if field.type == "int"):
            value = getattr(self, name)
            if type(value) is not int:  # True is an int too
                raise PlanError(
                    f"{spec.name}: {name} {value!r:.40} of {self.type_name} is not an integer; "
                    "edit it"
                )
            limit = f"the number of parameters that {self.type_name} replaces"
            check_size(spec, name, value, spec.weight_params, least=0, limit=limit)

    @abstractmethod
    def check_sizes(self, spec: LayerSpec) -> None:
        """Raise PlanError if the sizes do not fit the layer, whose kind is already checked."""

    @abstractmethod
    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the factors."""

    def empty_factors(self, spec: LayerSpec) -> Factors:
        """Return zero factors of the right shapes, to be filled from a file."""
        return {name: torch.zeros(shape) for name, shape in self.factor_shapes(spec).items()}

    def weight_params(self, spec: LayerSpec) -> int:
        """Number of scalars in the factors, without the bias; a tied weight counts once."""
        return sum(prod(shape) for shape in self.factor_shapes(spec).values())

    def nbytes(self, spec: LayerSpec, bytes_per_param: int) -> int:
        """Bytes of the stored factors, without the bias, at that many bytes per scalar."""
        return self.weight_params(spec) * bytes_per_param

    def flops_per_row(self, spec: LayerSpec) -> int:
        """Floating-point operations per row (2 per multiply-add), as LayerSpec.flops_per_row."""
        return 2 * self.weight_params(spec)

    def places(self, spec: LayerSpec) -> Mapping[str, Place]:
        """Return where the module of `build` keeps each factor.

        Empty if the structure takes no number formats.
        """
        return {}

    def stored(self, factors: Factors, dtype: torch.dtype) -> Factors:
        """Return the factors as `build` stores them in a layer of that dtype."""
        return {name: value.to(dtype).contiguous() for name, value in factors.items()}

    def fit(
        self,
        weight: Tensor,
        whitening: Whitening,
        spec: LayerSpec,
        *,
        quick: bool = False,
        start: Factors | None = None,
    ) -> Factors:
        """Fit factors to `weight` (groups, m, n) in the whitened Frobenius norm.

        The fit is deterministic. An iterative fit does fewer sweeps if `quick` (a point of a loss
        curve). It may begin at `start`: factors of this structure or a smaller one of its family.

        Raises:
            FitError: the weight or its whitening is not finite.
        """
        return self._fit(FitTask(weight, whitening, spec, quick, start))

    @abstractmethod
    def _fit(self, task: FitTask) -> Factors:
        """`fit`, for each structure."""

    @abstractmethod
    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        """Return the dense weight of the factors: (groups, m, n)."""

    @abstractmethod
    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        """Build the replacement, with the layer's dtype, device, mode and requires_grad."""

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        """Structures to fit for the loss curves of a layer, each family from small to large.

        Empty if the loss curve has a closed form or the structure does not suit the layer.
        """
        return ()

    @classmethod
    def family_of(cls, sizes: Iterable[Self], spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        """One family, of the different `sizes` that are smaller than the dense weight.

        Empty if they are fewer than two.
        """
        smaller = (size for size in sizes if size.weight_params(spec) < spec.weight_params)
        family = tuple(dict.fromkeys(smaller))
        return (family,) if len(family) > 1 else ()

    def between(self, larger: Structure) -> tuple[Structure, ...]:
        """Structures with sizes strictly between this one and `larger`, the next of its family.

        Their losses are interpolated. By default all ranks between (multiples of the chunk, if the
        structure has one), if the other fields are equal.
        """
        this, other = cast(Any, self), cast(Any, larger)
        if not hasattr(self, "rank") or type(larger) is not type(self):
            return ()
        if replace(this, rank=other.rank) != other:
            return ()
        ranks = range(this.rank, other.rank, max(1, getattr(this, "chunk", 1)))
        return tuple(replace(this, rank=rank) for rank in ranks[1:])


def check_size(
    spec: LayerSpec, field: str, value: int, largest: int, *, least: int = 1, limit: str = ""
) -> None:
    """Raise PlanError unless least <= value <= largest; `limit` explains the largest."""
    if not least <= value <= largest:
        limit = limit or f"the weight is {spec.out_features} x {spec.in_features}"
        raise PlanError(
            f"{spec.name}: {field} {value} is not between {least} and {largest} ({limit}); "
            f"edit its {field}"
        )
