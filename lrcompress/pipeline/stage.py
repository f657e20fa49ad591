"""The common part of all stages: reuse finished work, else do it, time it and record it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from lrcompress.pipeline.run_folder import RunFolder
from lrcompress.progress import Progress
from lrcompress.reporting.report import StageTime

Facts = TypeVar("Facts")


class Clock:
    """Seconds per stage. Only the report holds them, so that the other files stay reproducible."""

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


@dataclass(frozen=True, eq=False)
class RunContext:
    """The objects that every stage of a run uses."""

    folder: RunFolder
    progress: Progress
    clock: Clock


@dataclass(frozen=True)
class NoFacts:
    """The facts of a stage that only writes files."""


@dataclass(frozen=True, eq=False)
class StageOutput(Generic[Facts]):
    """The output of a stage: its files, as names in the run folder, and its facts.

    finished: False if a rerun must do the work again.
    """

    files: Sequence[str]
    facts: Facts
    finished: bool = True


@dataclass(frozen=True)
class Stage(Generic[Facts]):
    """A stage: its name in stages.json, and the class of the facts recorded there."""

    name: str
    facts: type[Facts]

    def run(
        self,
        context: RunContext,
        key: str,
        work: Callable[[], StageOutput[Facts]],
        *,
        again: bool = False,
        begins: bool = True,
        rewritten_by: str | None = None,
        forget: str | None = None,
    ) -> Facts:
        """Return the facts of the stage, from stages.json if it is finished under `key`.

        again: do the work even if it is finished.
        begins: forget the stage and the stages after it before the work. If False, a failing `work`
            leaves the ledger unchanged.
        rewritten_by: a later stage, whose digests count for the files that both wrote.
        forget: a later stage, made from files that this one replaces.
        """
        if not again and self.is_finished(context, key, rewritten_by=rewritten_by):
            context.clock.reused(self.name)
            return context.folder.facts(self.name, self.facts)
        if begins:
            context.folder.begin(self.name)
        with context.clock.stage(self.name):
            output = work()
            if output.finished:
                context.folder.finish(self.name, key, output.files, output.facts, forget=forget)
        return output.facts

    def is_finished(
        self, context: RunContext, key: str, *, rewritten_by: str | None = None
    ) -> bool:
        """Return whether `run` would reuse the stage."""
        return context.folder.finished(self.name, key, rewritten_by)

    def recorded(self, folder: RunFolder) -> Facts | None:
        """Return the facts in stages.json under any key; None without a record."""
        return None if folder.record(self.name) is None else folder.facts(self.name, self.facts)
