"""The Outcome of a command that produced a network: exit code, failed checks and doubts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from lrcompress_cli.exit_codes import ExitCode, of_run
from lrcompress_cli.terminal import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lrcompress.reporting.report import Report

accept_doubts_option = click.option(
    "--accept-doubts",
    is_flag=True,
    help="Exit with 0 even if the result is known to be bad, or nothing could be measured.",
)


def run_outcome(
    record: Mapping[str, Any], shown: RenderableType, report: Report, *, accept_doubts: bool
) -> Outcome:
    code = of_run(report.checks, report.severe_doubts, accept_doubts=accept_doubts)
    failed = [check for check in report.checks if check.passed is False]
    problems = [f"{check.name}: {check.detail}" for check in failed]
    if code is ExitCode.ACCURACY:
        accepted = "with --accept-doubts, the exit code is 0"
        problems += [f"{doubt}; {accepted}" for doubt in report.severe_doubts]
    return Outcome(record, [shown], code, problems)
