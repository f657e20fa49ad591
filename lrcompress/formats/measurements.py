"""Measurements of plans on the disk, so that a killed selection goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lrcompress.formats.files import write_json


class MeasurementFolder:
    """A MeasurementStore: one JSON file a measurement, whole or not there.

    The folder belongs to one run's weights, data, profile and options: whoever makes it sees to
    that.

    Raises:
        LrcompressError: the disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Mapping[str, float] | None:
        """None too for a damaged file: the plan is measured again."""
        try:
            held = json.loads(self._path(key).read_text(encoding="utf-8"))
            return {str(name): float(value) for name, value in held.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def put(self, key: str, values: Mapping[str, float]) -> None:
        if all(abs(value) < float("inf") for value in values.values()):
            write_json(self._path(key), dict(values))

    def _path(self, key: str) -> Path:
        return self.folder / f"measured-{key}.json"
