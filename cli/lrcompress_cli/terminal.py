"""Terminal output: results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import click

from lrcompress.messages import printable, printable_lines
from lrcompress_cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from lrcompress.progress import Progress

WIDTH_OF_FILES = 120  # width of a table that is written to a file or pipe


@dataclass(frozen=True)
class Outcome:
    """The result of a command: its documented JSON object, and the same for human readers."""

    data: Mapping[str, Any]
    shown: Sequence[RenderableType] = ()  # a plain str is written unchanged
    code: ExitCode = ExitCode.OK
    problems: Sequence[str] = field(default_factory=tuple)  # lines for stderr


class Terminal:
    """stdout and stderr of a command.

    json_output: write one object to stdout. quiet: write only errors and that object.
    """

    def __init__(self, *, json_output: bool, quiet: bool) -> None:
        self.json_output = json_output
        self.quiet = quiet
        self._stdout: TextIO = sys.stdout

    @functools.cached_property
    def errors(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

    @functools.cached_property
    def progress(self) -> Progress:
        from lrcompress.progress import SILENT
        from lrcompress_cli.progress import TerminalProgress

        if self.quiet or not self.errors.is_terminal:
            return SILENT
        return TerminalProgress(self.errors)

    def note(self, text: str) -> None:
        if not self.quiet:
            self.errors.print(printable(text))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context of a command's work: what libraries print goes to stderr."""
        logger = logging.getLogger("lrcompress")
        handler = _ToTerminal(self)
        logger.addHandler(handler)
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings():
                # Library deprecation warnings do not concern users of the command.
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.removeHandler(handler)

    def finish(self, outcome: Outcome) -> ExitCode:
        if self.json_output:
            self._stdout.write(json.dumps(outcome.data, indent=2, allow_nan=False) + "\n")
        elif not self.quiet:
            for part in outcome.shown:
                self._show(part)
        self._stdout.flush()
        for problem in outcome.problems:
            sys.stderr.write(f"error: {printable(problem)}\n")
        return outcome.code

    def _show(self, part: RenderableType) -> None:
        if isinstance(part, str):
            self._stdout.write(part if part.endswith("\n") else part + "\n")
            return
        from rich.console import Console

        make = functools.partial(
            Console, file=self._stdout, highlight=False, markup=False, emoji=False
        )
        console = make()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = make(width=WIDTH_OF_FILES)
        console.print(_Printable(part))


class _Printable:
    """A renderable that makes every character printable, as a last safeguard."""

    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._part, options):
            text = segment.text if segment.control else printable_lines(segment.text)
            yield segment._replace(text=text)


class _ToTerminal(logging.Handler):
    """A log handler that shows the library's messages on stderr unless --quiet."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        word = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._terminal.note(f"{word}{record.getMessage()}")


def reporting(function: Callable[..., Outcome]) -> Callable[..., ExitCode]:
    """Add the options of every command. `function` takes a Terminal first; returns an Outcome."""

    @functools.wraps(function)
    def call(*, json_output: bool, quiet: bool, show_traceback: bool, **values: Any) -> ExitCode:
        terminal = Terminal(json_output=json_output, quiet=quiet)
        with terminal.working():
            outcome = function(terminal, **values)
        return terminal.finish(outcome)

    for option in (
        click.option(
            "--traceback", "show_traceback", is_flag=True, help="Show the traceback of an error."
        ),
        click.option(
            "-q", "--quiet", is_flag=True, help="Print errors only (and --json's object)."
        ),
        click.option(
            "--json",
            "json_output",
            is_flag=True,
            help="Print one JSON object on stdout; docs/cli.md documents it.",
        ),
    ):
        call = option(call)
    return call
