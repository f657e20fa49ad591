"""Progress bars on the terminal, for stages that take more than a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lrcompress.messages import printable

PATIENCE_SECONDS = 1.0


class _Step:
    def __init__(self, bars: Progress, task: TaskID, name: str) -> None:
        self._bars = bars
        self._task = task
        self._name = name

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)

    def say(self, text: str) -> None:
        self._bars.update(self._task, description=printable(f"{self._name}: {text}"))


class TerminalProgress:
    """The library's Progress as rich bars. Bars that became visible remain on the screen."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._lock = Lock()  # the timers run in separate threads
        self._open: list[TaskID] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[_Step]:
        task = self._bars.add_task(printable(name), total=total, visible=False)
        with self._lock:
            self._open.append(task)
        timer = Timer(PATIENCE_SECONDS, self._show, [task])
        timer.daemon = True
        timer.start()
        try:
            yield _Step(self._bars, task, name)
        finally:
            timer.cancel()
            self._close(task)

    def _show(self, task: TaskID) -> None:
        with self._lock:
            if task in self._open:
                self._bars.update(task, visible=True)
                self._bars.start()  # does nothing if it runs already

    def _close(self, task: TaskID) -> None:
        with self._lock:
            self._open.remove(task)
            if self._open:
                return
            self._bars.stop()
            for finished in self._bars.task_ids:  # a later start must not draw them again
                self._bars.remove_task(finished)
