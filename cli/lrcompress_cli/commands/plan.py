"""`lrcompress plan`: choose ranks for a budget, from an existing profile."""

from __future__ import annotations

from pathlib import Path

import click

from lrcompress.messages import printable
from lrcompress_cli.options.export import precision_option
from lrcompress_cli.options.gather import FOLDER, NEW_FILE
from lrcompress_cli.options.plan import PlanChoice, planning_options
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@click.argument("folder", type=FOLDER)
@planning_options
@precision_option
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    help="Write the plan here, to read, edit and use with `compress --plan`.",
)
@reporting
def command(
    terminal: Terminal,
    *,
    folder: Path,
    planning: PlanChoice,
    precision: str,
    output: Path | None,
) -> Outcome:
    """Decide the ranks that meet a budget.

    FOLDER is a profile that `lrcompress profile` wrote, or the run folder of a `compress`.
    """
    from lrcompress.formats.files import write_text
    from lrcompress.formats.plan_json import plan_to_json
    from lrcompress.formats.profile_json import load_profile
    from lrcompress.pipeline import find_profile
    from lrcompress.planning.planner import plan
    from lrcompress_cli.json_output import plan_record
    from lrcompress_cli.tables.plan import PlanTable

    budgets = planning.required_budgets()
    decided = plan(load_profile(find_profile(folder)), budgets, planning.options(precision))
    written = []
    if output is not None:
        write_text(output, plan_to_json(decided))
        written.append(f"\nwritten: {printable(str(output))}")
    record = {"file": None if output is None else str(output), "plan": plan_record(decided)}
    return Outcome(record, [PlanTable(decided), *written])
