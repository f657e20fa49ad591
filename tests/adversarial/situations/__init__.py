"""Small networks in unusual situations, by name."""

from __future__ import annotations

from adversarial.situations import (
    architectures,
    inputs,
    kinds,
    naming,
    outputs,
    sharing,
    state,
    wrapped,
)
from adversarial.situations.situation import Situation

TABLES = (outputs, inputs, sharing, kinds, naming, state, wrapped, architectures)
SITUATIONS: dict[str, Situation] = {
    name: row for table in TABLES for name, row in table.SITUATIONS.items()
}
