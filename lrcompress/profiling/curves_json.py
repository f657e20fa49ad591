"""Loss curves of structures as JSON: points {"type": "blast", "rank": 48, …, "loss": …}.

They are part of profile.json and, until the profile is complete, of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from lrcompress.checkpoint import CheckpointStore, Entry
from lrcompress.errors import DataError, PlanError
from lrcompress.json_dataclasses import from_json
from lrcompress.layers import LayerSpec
from lrcompress.messages import label, listed, shown
from lrcompress.profiling.profile import CurvePoint, Curves, LayerProfile
from lrcompress.structures import Structure, in_format
from lrcompress.structures.serial import structure_from_json, structure_to_json

KIND = "curves"
SAME = 1e-4  # relative to the loss of a zero weight: sums by other processes differ less
AGAIN = "profile again, or undo the edit"


def kept_curves(store: CheckpointStore, layer: LayerProfile) -> Curves | None:
    """Return the curves that `keep_curves` stored for a layer, whose profile has none yet.

    Return None if they were fitted in another metric, or to moments that have changed since.
    """
    entry = store.get(KIND, layer.name)
    if entry is None:
        return None
    metric, held = layer.curves_metric, entry.values
    most = layer.loss_of_removal(metric)
    try:
        if held["metric"] != metric or abs(held["most"] - most) > SAME * most:
            return None
        return curves_from_json(held["curves"], metric, layer.spectra, layer.spec, KIND) or None
    except (LookupError, TypeError, DataError):
        return None


def keep_curves(store: CheckpointStore, layer: LayerProfile) -> None:
    """Store the curves of a finished layer, so that a killed profile does not fit them again."""
    if layer.curves:
        values = {
            "layer": layer.name,
            "metric": layer.curves_metric,
            "most": layer.loss_of_removal(layer.curves_metric),
            "curves": curves_to_json(layer.curves),
        }
        store.put(KIND, layer.name, Entry(values))


def curves_to_json(curves: Sequence[Sequence[CurvePoint]]) -> list[list[dict[str, Any]]]:
    return [
        [{**structure_to_json(point.structure), "loss": point.loss} for point in curve]
        for curve in curves
    ]


def curves_from_json(
    value: object, metric: str, own: Mapping[str, Tensor], spec: LayerSpec, where: str
) -> Curves:
    """Parse the curves of one layer, from the field `where` of profile.json.

    own: the layer's spectra; the one in `metric` bounds the losses.

    Raises:
        DataError: the curves are not valid; the message names the layer.
    """
    layer = label(spec.name)
    if not isinstance(value, list) or not all(isinstance(curve, list) for curve in value):
        raise DataError(
            f"{where}: the curves of {layer} must be a list of lists, not {shown(value)}; {AGAIN}"
        )
    if value and metric not in own:
        raise DataError(
            f"{where}: the curves were fitted in the metric {shown(metric)}, in which {layer} has "
            f"no spectrum; {AGAIN}"
        )
    curves = []
    for i, curve in enumerate(value):
        points = [_point(item, spec, f"{where}[{i}][{j}]") for j, item in enumerate(curve)]
        fault = _fault(points, spec)
        # A quick fit may lose slightly more than a zero weight
        most = 10 * max(float(0.5 * own[metric].square().sum()), 1.0)
        if fault is None and max(p.loss for p in points) > most:
            fault = "has a loss many times that of removing the layer"
        if fault is not None:
            raise DataError(f"{where}[{i}]: the curve of {layer} {fault}; {AGAIN}")
        curves.append(tuple(points))
    return tuple(curves)


def _fault(points: Sequence[CurvePoint], spec: LayerSpec) -> str | None:
    """Return what is wrong with a curve, else None.

    A curve has one structure, growing sizes, and no loss above that of a smaller size.
    """
    if not points:
        return "is empty"
    types = {kind_of(point.structure): point for point in points}
    if len(types) > 1:
        return f"mixes the structures {listed(list(types))}"
    if types.keys() & {"dense", "low_rank"}:
        return f"is of {listed(list(types))}, whose loss needs no curve"
    for point, after in pairwise(points):
        if point.structure.weight_params(spec) >= after.structure.weight_params(spec):
            return f"does not grow from {point.structure} to {after.structure}"
        if after.loss > point.loss:
            return f"has a larger loss at {after.structure} than at {point.structure}"
    return None


def kind_of(structure: Structure) -> str:
    """Return the name of what all points of a curve share: the structure's type and its formats."""
    inner, formats = in_format(structure)
    return " ".join([inner.type_name, *map(str, formats)])


def _point(value: object, spec: LayerSpec, where: str) -> CurvePoint:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a point of {label(spec.name)} must be an object {{...}}, not "
            f"{shown(value)}; {AGAIN}"
        )
    loss = from_json(float, value.get("loss"), f"{where}.loss", DataError)
    try:
        structure = structure_from_json({k: v for k, v in value.items() if k != "loss"}, spec.name)
        structure.check(spec)
    except PlanError as cause:
        raise DataError(f"{where}: {cause}; {AGAIN}") from cause
    if loss < 0:
        raise DataError(f"{where}.loss: {label(spec.name)} has a negative loss; {AGAIN}")
    return CurvePoint(structure, loss)
