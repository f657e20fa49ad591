"""Measurements that a killed selection goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Protocol

from lrcompress.planning.plan import Plan
from lrcompress.structures.serial import structure_to_json


class MeasurementStore(Protocol):
    def get(self, key: str) -> Mapping[str, float] | None:
        """What was measured under the key, if anything was."""
        ...

    def put(self, key: str, values: Mapping[str, float]) -> None: ...


class NoMeasurements:
    """Keeps nothing: a killed selection starts again."""

    def get(self, key: str) -> Mapping[str, float] | None:
        return None

    def put(self, key: str, values: Mapping[str, float]) -> None:
        pass


def plan_digest(plan: Plan) -> str:
    """sha256 of what carrying the plan out depends on: structures and the metric of the fits."""
    parts = {name: structure_to_json(value) for name, value in plan.structures.items()}
    text = json.dumps([plan.model_fingerprint, plan.metric, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
