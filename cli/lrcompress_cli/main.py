"""The command table. `lrcompress --help` uses it without importing any command or torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import click

from lrcompress_cli.failure import report_failure
from lrcompress_cli.processes import fail_together, is_follower, silenced


@dataclass(frozen=True)
class Entry:
    module: str  # holds `command`
    summary: str
    resumable: bool = False  # rerunning the same command resumes after an interruption
    shared: bool = False  # torchrun's processes share the work; else the first does it


COMMANDS: dict[str, Entry] = {
    "profile": Entry(
        "lrcompress_cli.commands.profile",
        "Measure each layer: spectra, ranks, sensitivity.",
        resumable=True,
        shared=True,
    ),
    "plan": Entry("lrcompress_cli.commands.plan", "Decide the ranks that meet a budget."),
    "compress": Entry(
        "lrcompress_cli.commands.compress",
        "Profile, plan, compress, export and verify in one run.",
        resumable=True,
        shared=True,
    ),
    "tune": Entry(
        "lrcompress_cli.commands.tune",
        "Train a compressed model towards its dense one.",
        resumable=True,
        shared=True,
    ),
    "export": Entry("lrcompress_cli.commands.export", "Write a model as an ONNX graph."),
    "verify": Entry("lrcompress_cli.commands.verify", "Check an ONNX file against its model."),
    "bench": Entry("lrcompress_cli.commands.bench", "Time a dense against a compressed model."),
    "calibrate-latency": Entry(
        "lrcompress_cli.commands.calibrate_latency", "Time structures on this machine."
    ),
    "doctor": Entry("lrcompress_cli.commands.doctor", "Can this machine run models on its GPU?"),
    "completion": Entry("lrcompress_cli.commands.completion", "Print a shell's completion script."),
}


class CommandTable(click.Group):
    """The click group of COMMANDS. Every failure ends in one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = import_module(entry.module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "lrcompress",
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001  # click's signature
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        _write_anything(sys.stdout, sys.stderr)
        # Limit the spinning of waiting threads to microseconds. On a shared machine, the default of
        # milliseconds costs most of the time. On an idle one, no spinning costs half of the time.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        entry = COMMANDS.get(arguments[0]) if arguments else None
        if is_follower() and (entry is None or not entry.shared):
            sys.exit(0)
        try:
            with silenced() if is_follower() else nullcontext():
                code = super().main(
                    arguments,
                    prog_name,
                    complete_var,
                    standalone_mode=False,
                    obj=arguments,  # the report shows the exact command
                    **extra,
                )
            if is_follower():  # only the first process reports failed checks
                code = 0
        except BaseException as error:
            resumable = entry is not None and entry.resumable
            report = partial(report_failure, arguments=arguments, resumable=resumable)
            code = fail_together(error, report)
        sys.exit(code)


def _write_anything(*streams: object) -> None:
    """Make streams escape the characters that their encoding lacks, instead of failing."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@click.group(
    "lrcompress",
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="lrcompress", message="%(prog)s %(version)s")
def main() -> None:
    """Make a trained neural network smaller and faster, provably.

    One command takes a model to a smaller, verified ONNX file:

    lrcompress compress MODEL --data TEXT --budget 50% -o out/
    """


if __name__ == "__main__":
    main()
