"""Seconds per stage. Only the report holds them, so that the other files stay reproducible."""

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
        self._note(StageTime(name, time.perf_counter() - started, reused=False))

    def worked(self, name: str) -> bool:
        """Return whether the stage was carried out, not reused, when it was last noted."""
        return any(stage.name == name and not stage.reused for stage in self.stages)

    def reused(self, name: str) -> None:
        self._note(StageTime(name, 0.0, reused=True))

    def _note(self, stage: StageTime) -> None:
        """Replace the entry of the stage: a reused stage may have to be run again later."""
        self.stages = [*(s for s in self.stages if s.name != stage.name), stage]
