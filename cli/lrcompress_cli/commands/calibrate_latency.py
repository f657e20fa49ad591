"""`lrcompress calibrate-latency`: measure latencies of structures and formats on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lrcompress.messages import printable
from lrcompress_cli.options.export import provider_option
from lrcompress_cli.options.gather import NEW_FILE
from lrcompress_cli.options.lists import Numbers, Shapes
from lrcompress_cli.options.structures import StructureNames
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@click.option(
    "--structures",
    type=StructureNames(),
    metavar="NAMES",
    help="Structures to time, separated by commas; by default all for linear layers. Others are "
    "listed as not timed.",
)
@click.option(
    "--formats",
    metavar="NAMES",
    default="int8-dynamic,int8/32,int8/128,int4/32,int4/128,int2/32",
    show_default=True,
    help="Number formats of dense and low-rank layers to time besides fp32, separated by commas; "
    "'' for none.",
)
@click.option(
    "--rows",
    type=Numbers(),
    metavar="LIST",
    default="1,16,128,1024",
    show_default=True,
    help="Rows (tokens) of a layer in one call, separated by commas.",
)
@click.option(
    "--sizes",
    type=Shapes(),
    metavar="LIST",
    default="384,1536x384,384x1536,768,2048",
    show_default=True,
    help="Sizes of the layers to time, separated by commas: OUTxIN, or N for a square one.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    metavar="N",
    default=30,
    show_default=True,
    help="Timed runs of each structure, size, form and number of rows.",
)
@provider_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Threads of one operator.",
)
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    default=Path("latency_table.json"),
    show_default=True,
    help="File for the table, for --latency-table.",
)
@reporting
def command(
    terminal: Terminal,
    *,
    structures: tuple[str, ...] | None,
    formats: str,
    rows: tuple[int, ...],
    sizes: tuple[tuple[int, int], ...],
    runs: int,
    provider: Literal["cpu", "cuda", "tensorrt"],
    threads: int,
    output: Path,
) -> Outcome:
    """Time structures and number formats against the dense layers that they replace.

    Each structure is timed in every form in which it can be exported. `plan` and `compress` use
    the table to leave out structures slower than dense, and `export` to choose the fastest form.
    """
    from lrcompress.atomic import refuse_unwritable
    from lrcompress.export.bench import device_name
    from lrcompress.export.calibrate import (
        DEFAULTS,
        CalibrationSettings,
        calibrate_latency,
        not_timed,
    )
    from lrcompress.formats.files import write_text
    from lrcompress.planning.latency import table_to_json
    from lrcompress.reporting.environment import describe_environment
    from lrcompress_cli.tables.latency import LatencyTableView

    settings = CalibrationSettings(
        provider,
        structures or DEFAULTS.structures,
        sizes,
        rows,
        runs,
        threads,
        _formats(formats),
    )
    refuse_unwritable(output)
    table = calibrate_latency(settings, terminal.progress)
    left_out = {
        name.replace("_", "-"): reason
        for name, reason in not_timed(settings.structures, settings.shapes).items()
    }
    for name, reason in left_out.items():
        terminal.note(f"not timed: {name} ({reason})")
    machine = describe_environment(device=device_name(provider), provider=provider, threads=threads)
    write_text(output, table_to_json(table, machine))
    record = {
        "file": str(output),
        "machine": machine,
        "measurements": len(table.measurements),
        "not_timed": left_out,
    }
    return Outcome(record, [LatencyTableView(table), f"\nwritten: {printable(str(output))}"])


def _formats(text: str) -> tuple[str, ...]:
    """Raises a usage error for a text that names no format."""
    from lrcompress.errors import PlanError
    from lrcompress.number_formats import parse_format

    try:
        return tuple(dict.fromkeys(str(parse_format(one)) for one in text.split(",") if one))
    except PlanError as error:
        raise click.UsageError(f"--formats: {error}", click.get_current_context()) from error
