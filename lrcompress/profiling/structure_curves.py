"""Loss curves of structures without a closed-form loss: a few fits for each layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.profiling.profile import CurvePoint
from lrcompress.structures import STRUCTURES, Factors

Curves = tuple[tuple[CurvePoint, ...], ...]


def structure_curves(
    weight: Tensor, whitening: Whitening, spec: LayerSpec, structures: Sequence[str]
) -> Curves:
    """Return one curve for each family of the named structures that suits the layer.

    weight: (groups, m, n). Each fit starts from the next smaller one of its family, and losses
    never grow with size. A family that cannot be fitted has no curve, and the planner ignores it.
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
