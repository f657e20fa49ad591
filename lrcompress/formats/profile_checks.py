"""Checks of profile.json for numbers and shapes that no measurement gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrcompress.errors import DataError
from lrcompress.formats.moments import DiskMoments
from lrcompress.layers import LayerSpec
from lrcompress.messages import label
from lrcompress.profiling.curves_json import AGAIN

MOST_ROWS = 1e15  # measuring more would take years
MOST_TIMES = 1e100  # largest ratio of measured to predicted; larger ones overflow in products


def check_numbers(fields: Mapping[str, Any], where: str) -> None:
    """Raise DataError if a number in a layer's profile is out of range."""
    if not 0 <= fields.get("shrinkage", 0.0) < 1:
        raise DataError(f"{where}.shrinkage: must be at least 0 and below 1; {AGAIN}")
    if not 0 <= fields["rows_per_example"] <= MOST_ROWS:
        raise DataError(f"{where}.rows_per_example: must be between 0 and 1e15; {AGAIN}")
    if not 1 / MOST_TIMES < fields.get("factor", 1.0) < MOST_TIMES:
        raise DataError(f"{where}.factor: must be above 0 and below 1e100; {AGAIN}")
    for i, trial in enumerate(fields.get("trials", ())):
        if trial.rank < 0 or trial.predicted < 0:
            raise DataError(f"{where}.trials[{i}]: its numbers must not be negative; {AGAIN}")
        known = trial.predicted > 0 and trial.measured > 0
        if known and not 1 / MOST_TIMES < trial.measured / trial.predicted < MOST_TIMES:
            raise DataError(
                f"{where}.trials[{i}]: what was measured must be within 1e100 times of what was "
                f"predicted; {AGAIN}"
            )


def check_moments(spec: LayerSpec, moments: DiskMoments, path: Path) -> None:
    """Raise DataError if a moment's shape does not fit its layer."""
    for part, shape in moments.shapes(spec.name).items():
        size = spec.out_features if part == "sensitivity.output" else spec.in_features
        allowed: set[tuple[int, ...]] = {(spec.groups, size)}
        if part == "sensitivity.bias":
            allowed = {(spec.groups,)}
        elif not part.endswith("mean"):
            allowed.add((spec.groups, size, size))
        if shape not in allowed:
            raise DataError(
                f"{path}: the {part} moment of {label(spec.name)} has shape {shape}, its weight is "
                f"{spec.out_features} x {spec.in_features}; {AGAIN}"
            )
