"""Loss curves of structures in profile.json: points {"type": "blast", "rank": 48, …, "loss": …};
and of the layers that a profile has done, each in a file of its own until it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from lrcompress.errors import DataError, PlanError
from lrcompress.fingerprint import name_digest
from lrcompress.formats.files import write_json
from lrcompress.json_dataclasses import from_json
from lrcompress.layers import LayerSpec
from lrcompress.messages import label, listed, shown
from lrcompress.profiling.profile import CurvePoint, LayerProfile
from lrcompress.profiling.structure_curves import Curves
from lrcompress.structures.serial import structure_from_json, structure_to_json

SAME = 1e-4  # of the loss of a zero weight: moments summed by other processes differ less
AGAIN = "profile again, or undo the edit"


class CurveFolder:
    """A CurveStore. The folder belongs to one run's weights, data and options: whoever makes it
    sees to that.

    Raises:
        LrcompressError: the disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, layer: LayerProfile) -> Curves | None:
        """None too for a file damaged by whatever stopped the run: the curves are fitted again."""
        path, spec, metric = self._path(layer), layer.spec, layer.curves_metric
        most = layer.loss_of_removal(metric)
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["metric"] != metric or abs(held["most"] - most) > SAME * most:
                return None
            curves = tuple(
                tuple(_point(item, spec, f"{path}[{i}][{j}]") for j, item in enumerate(curve))
                for i, curve in enumerate(held["curves"])
            )
            sound = curves and all(_what_is_no_curve(curve, spec) is None for curve in curves)
            return curves if sound else None
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None

    def put(self, layer: LayerProfile) -> None:
        if not layer.curves:
            return
        held = {
            "layer": layer.name,
            "metric": layer.curves_metric,
            "most": layer.loss_of_removal(layer.curves_metric),
            "curves": curves_to_json(layer.curves),
        }
        write_json(self._path(layer), held)

    def _path(self, layer: LayerProfile) -> Path:
        return self.folder / f"curves-{name_digest(layer.name)}.json"


def curves_to_json(curves: Sequence[Sequence[CurvePoint]]) -> list[list[dict[str, Any]]]:
    return [
        [{**structure_to_json(point.structure), "loss": point.loss} for point in curve]
        for curve in curves
    ]


def curves_from_json(
    value: object, metric: str, own: Mapping[str, Tensor], spec: LayerSpec, where: str
) -> Curves:
    """The curves of one layer, as profile.json holds them at `where`.

    own: the layer's spectra; the one in `metric` tells how much there is to lose.

    Raises:
        DataError: what no profile holds; it names the layer.
    """
    layer = label(spec.name)
    if not isinstance(value, list) or not all(isinstance(curve, list) for curve in value):
        raise DataError(
            f"{where}: must be a list of lists, not {shown(value)}, of {layer}; {AGAIN}"
        )
    if value and metric not in own:
        raise DataError(
            f"{where}: were fitted in the metric {shown(metric)}, of which {layer} has no "
            f"spectrum; {AGAIN}"
        )
    curves = []
    for i, curve in enumerate(value):
        points = [_point(item, spec, f"{where}[{i}][{j}]") for j, item in enumerate(curve)]
        wrong = _what_is_no_curve(points, spec)
        if wrong is None and max(p.loss for p in points) > _most_to_lose(own[metric]):
            wrong = "loses many times what removing the layer would"
        if wrong is not None:
            raise DataError(f"{where}[{i}]: the curve of {layer} {wrong}; {AGAIN}")
        curves.append(tuple(points))
    return tuple(curves)


def _what_is_no_curve(points: Sequence[CurvePoint], spec: LayerSpec) -> str | None:
    """Sizes of one structure from small to large, none of which loses more than a smaller one."""
    if not points:
        return "is empty"
    types = {point.structure.type_name: point for point in points}
    if len(types) > 1:
        return f"mixes {listed(list(types))}"
    if types.keys() & {"dense", "low_rank"}:
        return f"is of {listed(list(types))}, whose loss needs none"
    for point, after in pairwise(points):
        if point.structure.weight_params(spec) >= after.structure.weight_params(spec):
            return f"does not grow from {point.structure} to {after.structure}"
        if after.loss > point.loss:
            return f"loses more as {after.structure} than as {point.structure}"
    return None


def _most_to_lose(spectrum: Tensor) -> float:
    """Ten times the loss of a zero weight: a quick fit may lose a little more than that."""
    return 10 * max(float(0.5 * spectrum.square().sum()), 1.0)


def _point(value: object, spec: LayerSpec, where: str) -> CurvePoint:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: must be an object {{...}}, not {shown(value)}, of {label(spec.name)}; "
            f"{AGAIN}"
        )
    loss = from_json(float, value.get("loss"), f"{where}.loss", DataError)
    try:
        structure = structure_from_json({k: v for k, v in value.items() if k != "loss"}, spec.name)
        structure.check(spec)
    except PlanError as cause:
        raise DataError(f"{where}: {cause}; {AGAIN}") from cause
    if loss < 0:
        raise DataError(f"{where}.loss: must not be negative, of {label(spec.name)}; {AGAIN}")
    return CurvePoint(structure, loss)
