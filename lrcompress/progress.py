"""Progress reporting of long work. The library reports; the caller decides what to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    def advance(self, amount: int = 1) -> None: ...

    def say(self, text: str) -> None:
        """Report the current result in a few words."""
        ...


class Progress(Protocol):
    def stage(self, name: str, total: int) -> AbstractContextManager[Step]:
        """Start a stage called `name` with `total` units of work."""
        ...


class _SilentStep:
    def advance(self, amount: int = 1) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Silent:
    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        yield _SilentStep()


SILENT: Progress = _Silent()
