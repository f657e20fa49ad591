"""Loss curves of the structures whose loss no closed form gives: a few fits for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.profiling.profile import CurvePoint, LayerProfile
from lrcompress.structures import STRUCTURES, Factors

Curves = tuple[tuple[CurvePoint, ...], ...]


class CurveStore(Protocol):
    """Curves of finished layers, so that a killed profile goes on where it stopped."""

    def get(self, layer: LayerProfile) -> Curves | None:
        """Those of the layer, whose profile has none yet; None if they were fitted in another
        metric or to moments that have changed since."""
        ...

    def put(self, layer: LayerProfile) -> None: ...


class NoCurveStore:
    """Keeps nothing: a killed profile starts again."""

    def get(self, layer: LayerProfile) -> Curves | None:
        return None

    def put(self, layer: LayerProfile) -> None:
        pass


def structure_curves(
    weight: Tensor, whitening: Whitening, spec: LayerSpec, structures: Sequence[str]
) -> Curves:
    """One curve for each family of the named structures that suits the layer; none grows with size.

    weight: (groups, m, n). Each fit begins where the next smaller one of its family ended. A
    family that cannot be fitted has no curve: the planner then does without it.
    """
    curves = []
    for name in structures:
        for family in STRUCTURES[name].families(spec):
            points: list[CurvePoint] = []
            factors: Factors | None = None
            for structure in family:
                try:
                    factors = structure.fit(weight, whitening, spec, quick=True, start=factors)
                except FitError:
                    break
                loss = float(whitening.loss(weight - structure.dense(factors, spec)))
                points.append(CurvePoint(structure, min([loss, *(p.loss for p in points)])))
            if points:
                curves.append(tuple(points))
    return tuple(curves)
