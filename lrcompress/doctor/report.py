"""The findings of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lrcompress.json_dataclasses import to_json

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    name: str
    status: Status  # warn: something works less well than it could; fail: something is broken
    detail: str
    next_step: str = ""  # what to do about it; empty if nothing is needed


@dataclass(frozen=True)
class DoctorReport:
    checks: tuple[Check, ...]
    schema_version: int = 1

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken; there may be warnings."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {**to_json(self), "healthy": self.healthy}
