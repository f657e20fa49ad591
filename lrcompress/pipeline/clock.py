"""Seconds of each stage; they go into the report and nowhere else, so that files stay equal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lrcompress.reporting.report import StageTime


class Clock:
    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages.append(StageTime(name, time.perf_counter() - started, reused=False))

    def reused(self, name: str) -> None:
        self.stages.append(StageTime(name, 0.0, reused=True))
