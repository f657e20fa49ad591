"""What a rewrite of a graph reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewriteResult:
    name: str
    changes: int  # nodes or initializers that were edited
    note: str = ""  # for the user
