"""Measurements of plans, kept in a checkpoint store so that a killed selection can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

from lrcompress.checkpoint import CheckpointStore, Entry
from lrcompress.planning.plan import Plan
from lrcompress.selection.trial_network import Attribution, TrialNetwork
from lrcompress.structures.serial import structure_to_json

KIND = "measured"  # kind of the entries in the store


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measures plans on a network, each plan once."""

    network: TrialNetwork
    store: CheckpointStore

    def divergence(self, plan: Plan) -> float:
        """Return the divergence of the network with the plan's structures."""

        measured = self._once(
            plan_digest(plan), lambda: {"divergence": self.network.divergence(plan)}
        )
        return float(measured["divergence"])

    def attribution(self, plan: Plan) -> Attribution:
        """Return the divergence and each layer's share of it."""

        def measure() -> dict[str, float]:
            found = self.network.attribution(plan)
            return {"divergence": found.divergence, **found.shares}

        known = self._once(f"{plan_digest(plan)}-shares", measure)
        return Attribution(known["divergence"], {name: known[name] for name in plan.structures})

    def _once(self, key: str, measure: Callable[[], dict[str, float]]) -> Mapping[str, float]:
        """Return the measurement under `key`, from the store if it is there."""
        entry = self.store.get(KIND, key)
        if entry is not None:
            return entry.values
        values = measure()
        if all(isfinite(value) for value in values.values()):
            self.store.put(KIND, key, Entry(values))
        return values


def plan_digest(plan: Plan) -> str:
    """sha256 of what carrying out the plan depends on: structures and the metric of the fits."""
    parts = {name: structure_to_json(value) for name, value in plan.structures.items()}
    text = json.dumps([plan.model_fingerprint, plan.metric, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
