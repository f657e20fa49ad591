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
    """Curves of finished layers, so that a killed profile goes on where it stopped.

    metric, most: what they were fitted in, and the loss of a zero weight there. Curves of another
    metric, or of moments that have changed since, are not given back.
    """

    def get(self, spec: LayerSpec, metric: str, most: float) -> Curves | None: ...

    def put(self, spec: LayerSpec, metric: str, most: float, curves: Curves) -> None: ...


class NoCurveStore:
    """Keeps nothing: a killed profile starts again."""

    def get(self, spec: LayerSpec, metric: str, most: float) -> Curves | None:
        return None

    def put(self, spec: LayerSpec, metric: str, most: float, curves: Curves) -> None:
        pass


def keep_curves(store: CurveStore, layer: LayerProfile) -> None:
    if layer.curves:
        metric = layer.curves_metric
        store.put(layer.spec, metric, most_to_lose(layer.spectra[metric]), layer.curves)


def most_to_lose(spectrum: Tensor) -> float:
    """The loss of a zero weight."""
    return float(0.5 * spectrum.square().sum())


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
