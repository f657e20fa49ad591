"""Fidelity against bytes and against time."""

from __future__ import annotations

from benchmarks.bits.results import Results


def draw(results: Results) -> str:
    return "<svg xmlns='http://www.w3.org/2000/svg'/>\n"
