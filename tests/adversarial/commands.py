"""One command in this process: its exit code and what it printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from lrcompress_cli.main import main

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The error line; there is exactly one, and it is the last."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert lines == self.stderr.splitlines()[-1:], self.stderr
        assert "Traceback" not in self.stderr
        return lines[0]


def lrcompress(*arguments: str | Path, answer: str = "") -> Answer:
    """answer: what stands on stdin, should anything read it."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=answer)
    return Answer(result.exit_code, result.stdout, result.stderr)
