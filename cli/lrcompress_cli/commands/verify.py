"""`lrcompress verify`: compare an ONNX file with the network that it should compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from lrcompress_cli.exit_codes import of_checks
from lrcompress_cli.options.export import provider_option
from lrcompress_cli.options.gather import FILE
from lrcompress_cli.options.source import DataChoice, ModelChoice, data_options, reference_options
from lrcompress_cli.terminal import Outcome, Terminal, reporting

OTHER_REFERENCE = "not checked, since the reference is not the model beside the file"


@click.command()
@click.argument("onnx", type=FILE)
@reference_options
@data_options
@provider_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Largest error allowed, relative to the outputs' scale; by default derived from the "
    "precision.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the random inputs.",
)
@reporting
def command(
    terminal: Terminal,
    *,
    onnx: Path,
    reference: ModelChoice,
    data: DataChoice,
    provider: Literal["cpu", "cuda", "tensorrt"],
    tolerance: float | None,
    seed: int,
) -> Outcome:
    """Check an ONNX file against its model.

    ONNX may come from any exporter. In a run folder it is compared with the compressed model and
    the plan there, unless --reference names another model.
    """
    from lrcompress.export.verify.result import BudgetFacts
    from lrcompress.export.verify.verify import VerifyOptions, verify
    from lrcompress.pipeline import promised_budget
    from lrcompress_cli.tables.checks import check_table

    beside = onnx.parent / "lrcompress.json"
    if not reference.model and beside.is_file():
        reference = replace(reference, model=str(onnx.parent))
    own = not reference.model or Path(reference.model).resolve() == onnx.parent.resolve()
    promised = promised_budget(onnx) if own else BudgetFacts(why_none=OTHER_REFERENCE)
    module = batch = None
    if reference.model:
        loaded = reference.load()
        module, batch = loaded.module, data.example(loaded, seed)
    options = VerifyOptions(provider, promised, tolerance=tolerance, seed=seed)
    with terminal.progress.stage("verify", 1) as step:
        report = verify(onnx, module, batch, options)
        step.advance()
    return Outcome(
        report.to_json(),
        [check_table(report.checks)],
        of_checks(report.checks),
        [f"{check.name}: {check.detail}" for check in report.failed],
    )
