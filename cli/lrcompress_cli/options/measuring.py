"""How a model is profiled."""

from __future__ import annotations

from dataclasses import dataclass

import click

from lrcompress_cli.options.gather import gathered
from lrcompress_cli.options.sizes import ByteSize

# Literal, so that --help need not load torch; a test compares them with the library's tables.
METRIC_NAMES = ("plain", "diagonal", "input-weighted", "two-sided")
OBJECTIVE_NAMES = ("kl", "cosine", "squared")


@dataclass(frozen=True)
class MeasureChoice:
    objective: str
    pooling: str
    probes: int
    max_memory: int | None


metric_option = click.option(
    "--metric",
    type=click.Choice(METRIC_NAMES),
    help="Norm of a layer's error; two-sided with data, else plain.",
)

measuring_options = gathered(
    MeasureChoice,
    "measuring",
    click.option(
        "--objective",
        type=click.Choice(("auto", *OBJECTIVE_NAMES)),
        default="auto",
        show_default=True,
        help="Divergence between two outputs of the network.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(("auto", "mean", "cls", "none")),
        default="auto",
        show_default=True,
        help="How token embeddings become one; auto asks the model's folder.",
    ),
    click.option(
        "--probes",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Backward passes per batch that estimate the output sensitivity.",
    ),
    click.option(
        "--max-memory",
        type=ByteSize(),
        metavar="SIZE",
        help="Moments beyond this much memory go to disk, for example 2GB.",
    ),
)
