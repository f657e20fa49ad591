"""The contract of a structure: a hashable value that says what stands in a layer's place."""

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

    type_name: ClassVar[str]  # in plan.json and in the STRUCTURES table
    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS  # of layers that it can stand in for
    tried_unasked: ClassVar[bool] = True  # by --structures auto
    # Some of its work is done on the pixels of the input. flops_per_row takes them for the output's
    # times the stride; padding makes the true number differ by the border.
    counts_input_pixels: ClassVar[bool] = False

    def check(self, spec: LayerSpec) -> None:
        """Raise PlanError, naming the layer, if the structure cannot stand in its place."""
        if spec.kind not in self.kinds:
            kinds = ", ".join(sorted(self.kinds))
            raise PlanError(
                f"{spec.name}: {self.type_name} stands in for {kinds}, not for {spec.kind}; "
                "use low_rank or dense"
            )
        self._check_whole(spec)
        self.check_sizes(spec)

    def _check_whole(self, spec: LayerSpec) -> None:
        """Every size is a whole number, and none that no weight of this layer could have."""
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
        """The same, for a layer of the right kind."""

    @abstractmethod
    def weight_params(self, spec: LayerSpec) -> int:
        """Scalars in the factors, without the bias; a tied weight counts once."""

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
        """Best factors for `weight` (groups, m, n) in the whitened Frobenius norm.

        Deterministic. An iterative fit does fewer sweeps when `quick` (a point of a loss curve),
        and may begin at `start`: factors of this structure or of a smaller one of its family.

        Raises:
            FitError: the weight or its whitening is not finite.
        """

    @abstractmethod
    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        """The weight that the factors stand for: (groups, m, n)."""

    @abstractmethod
    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        """The module that takes the layer's place: its dtype, device, mode, need of gradients."""

    @abstractmethod
    def empty_factors(self, spec: LayerSpec) -> Factors:
        """Zero factors of the right shapes, to be filled from a file."""

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        """Structures to fit for the loss curves of a layer, each family from small to large.

        None where the loss curve has a closed form, or the structure does not suit the layer.
        """
        return ()

    def between(self, larger: Structure) -> tuple[Structure, ...]:
        """Structures of sizes between this one and the next of its family, without both.

        Their losses are interpolated. By default every rank, where nothing else differs.
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
