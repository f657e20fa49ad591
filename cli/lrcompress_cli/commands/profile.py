"""`lrcompress profile`: measure the layers of a model without changing it."""

from __future__ import annotations

from pathlib import Path

import click

from lrcompress.messages import printable
from lrcompress_cli.options.formats import formats_option
from lrcompress_cli.options.gather import NEW_FOLDER
from lrcompress_cli.options.plan import metric_option
from lrcompress_cli.options.profile import MeasureChoice, measuring_options
from lrcompress_cli.options.run import RunChoice, running_options
from lrcompress_cli.options.source import DataChoice, ModelChoice, data_options, model_options
from lrcompress_cli.options.structures import structures_option
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@model_options
@data_options
@metric_option
@structures_option
@formats_option
@measuring_options
@click.option(
    "-o",
    "--output",
    type=NEW_FOLDER,
    default=Path("profile"),
    show_default=True,
    help="Folder for the profile and its report.",
)
@running_options
@reporting
def command(
    terminal: Terminal,
    *,
    model: ModelChoice,
    data: DataChoice,
    metric: str | None,
    structures: tuple[str, ...] | None,
    formats: tuple[str, ...] | None,
    measuring: MeasureChoice,
    output: Path,
    running: RunChoice,
) -> Outcome:
    """Measure each layer: spectra, ranks, sensitivity.

    MODEL is a Hugging Face folder, pkg.module:factory, or an earlier run folder.
    """
    from lrcompress.pipeline import run_profile
    from lrcompress.planning.default_formats import default_formats
    from lrcompress_cli.json_output import profile_record
    from lrcompress_cli.tables.profile import ProfileTable

    running.use_threads()
    result = run_profile(
        model.source(data, running.seed),
        running.folder(output),
        measuring.options(running.seed, metric, structures, default_formats((), formats)),
        terminal.progress,
    )
    return Outcome(
        profile_record(result),
        [ProfileTable(result.profile), f"\nwritten: {printable(str(output))}"],
    )
