"""`lrcompress doctor`: find out why this machine cannot run models on its GPU."""

from __future__ import annotations

import click

from lrcompress_cli.exit_codes import ExitCode
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@reporting
def command(terminal: Terminal) -> Outcome:
    """Can this machine run models on its GPU?

    Checks the installed packages, the driver and the CUDA libraries, and computes one product on
    the GPU if there is one. The exit code is 4 if something is broken.
    """
    from lrcompress.doctor import diagnose
    from lrcompress_cli.tables.doctor import doctor_table

    report = diagnose()
    broken = [check for check in report.checks if check.status == "fail"]
    return Outcome(
        report.to_json(),
        [doctor_table(report)],
        ExitCode.PLACEMENT if broken else ExitCode.OK,
        [f"{check.name}: {check.detail}; {check.next_step}" for check in broken],
    )
