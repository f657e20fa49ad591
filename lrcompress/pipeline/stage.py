"""The common part of all stages: reuse finished work, else do it, time it and record it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lrcompress.pipeline.context import RunContext
from lrcompress.pipeline.run_folder import RunFolder

Facts = TypeVar("Facts")


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
        return context.folder.finished(self.name, key, rewritten_by=rewritten_by) is not None

    def recorded(self, folder: RunFolder) -> Facts | None:
        """Return the facts in stages.json under any key; None without a record."""
        return None if folder.record(self.name) is None else folder.facts(self.name, self.facts)
