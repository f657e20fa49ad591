"""The interface of a structure: a hashable value that describes the replacement of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.metrics import Whitening

Factors = Mapping[str, Tensor]
"""Factors of one layer by name; shapes are each structure's own."""

ALL_KINDS: frozenset[Kind] = frozenset(
    ("linear", "transposed_linear", "embedding", "conv1d", "conv2d")
)
LINEAR_KINDS: frozenset[Kind] = frozenset(("linear", "transposed_linear"))


class Structure(ABC):
    """A frozen dataclass whose fields are the sizes of the factors."""

    type_name: ClassVar[str]  # name in plan.json and in the STRUCTURES table
    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS  # kinds of layers that it can replace
    tried_unasked: ClassVar[bool] = True  # whether --structures auto tries it

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
        self._check_whole(spec)
        self.check_sizes(spec)

    def _check_whole(self, spec: LayerSpec) -> None:
        """Raise PlanError unless every size is an integer from 0 to the weight's parameters."""
        assert is_dataclass(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type != "int":
                continue
            if type(value) is not int:  # True is an int too
                raise PlanError(
                    f"{spec.name}: {field.name} {value!r:.40} of {self.type_name} is not a whole "
                    "number; edit it"
                )
            if not 0 <= value <= spec.weight_params:
                raise PlanError(
                    f"{spec.name}: {field.name} {value} is not between 0 and {spec.weight_params}, "
                    f"the parameters of its weight ({self.type_name}); edit its {field.name}"
                )

    @abstractmethod
    def check_sizes(self, spec: LayerSpec) -> None:
        """Raise PlanError if the sizes do not fit the layer, whose kind is already checked."""

    @abstractmethod
    def weight_params(self, spec: LayerSpec) -> int:
        """Number of scalars in the factors, without the bias; a tied weight counts once."""

    @abstractmethod
    def flops_per_row(self, spec: LayerSpec) -> int:
        """Floating-point operations per row (2 per multiply-add), as LayerSpec.flops_per_row."""

    @abstractmethod
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

    @abstractmethod
    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        """Return the dense weight of the factors: (groups, m, n)."""

    @abstractmethod
    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        """Build the replacement, with the layer's dtype, device, mode and requires_grad."""

    @abstractmethod
    def empty_factors(self, spec: LayerSpec) -> Factors:
        """Return zero factors of the right shapes, to be filled from a file."""

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        """Structures to fit for the loss curves of a layer, each family from small to large.

        Empty if the loss curve has a closed form or the structure does not suit the layer.
        """
        return ()

    def between(self, larger: Structure) -> tuple[Structure, ...]:
        """Structures with sizes strictly between this one and `larger`, the next of its family.

        Their losses are interpolated. By default all ranks between, if the other fields are equal.
        """
        if not hasattr(self, "rank") or type(larger) is not type(self):
            return ()
        assert is_dataclass(self) and not isinstance(self, type)  # noqa: PT018
        mine, theirs = ({f.name: getattr(x, f.name) for f in fields(self)} for x in (self, larger))
        first, last = mine.pop("rank"), theirs.pop("rank")
        if mine != theirs:
            return ()
        value = cast(Any, self)
        return tuple(replace(value, rank=rank) for rank in range(first + 1, last))
