"""Options for the budget and for what a plan may change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.formats import formats_option
from lrcompress_cli.options.gather import FILE, gathered
from lrcompress_cli.options.structures import structures_option

if TYPE_CHECKING:
    from lrcompress.planning.budget import Budget
    from lrcompress.planning.options import PlanOptions

# Literal, so that --help does not import torch; a test compares them with the library's tables.
ALLOCATOR_NAMES = ("global", "uniform", "energy", "scaled-stable-rank")
METRIC_NAMES = ("plain", "diagonal", "input-weighted", "two-sided", "blended")
SCOPE_NAMES = ("total", "compressible")
BYTES_PER_PARAM = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class PlanChoice:
    budget: tuple[str, ...]
    scope: Literal["total", "compressible"]
    allocator: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    multiple_of: int | None
    min_rank: int
    metric: str | None
    structures: tuple[str, ...] | None
    formats: tuple[str, ...] | None
    rows: int
    latency_table: Path | None

    def parsed_budgets(self) -> tuple[Budget, ...]:
        """Raises a usage error that names the accepted forms."""
        from lrcompress.errors import PlanError
        from lrcompress.planning.budget import Budget

        try:
            return tuple(Budget.parse(text, scope=self.scope) for text in self.budget)
        except PlanError as error:
            raise click.UsageError(f"--budget: {error}", click.get_current_context()) from error

    def required_budgets(self) -> tuple[Budget, ...]:
        budgets = self.parsed_budgets()
        if not budgets:
            raise click.UsageError("give a budget: --budget 50%", click.get_current_context())
        return budgets

    def formats_for(self, provider: str = "cpu") -> tuple[str, ...]:
        """Return the formats to measure, by the budget where the user named none."""
        from lrcompress.planning.default_formats import default_formats

        kinds = [budget.kind for budget in self.parsed_budgets()]
        return default_formats(kinds, self.formats, provider)

    def options(self, precision: str, provider: str = "cpu") -> PlanOptions:
        """By default a plan takes the formats that its profile measured."""
        from lrcompress.planning.options import PlanOptions

        named = () if self.formats is None else self.formats_for(provider) or (precision,)
        return PlanOptions(
            allocator=self.allocator,
            metric=self.metric,
            multiple_of=self.multiple_of,
            min_rank=self.min_rank,
            structures=self.structures or (),
            formats=named,
            provider=provider,
            rows=self.rows,
            latency_table=str(self.latency_table or ""),
            include=self.include,
            exclude=self.exclude,
            bytes_per_param=BYTES_PER_PARAM[precision],
        )


rows_option = click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    default=128,
    show_default=True,
    help="Rows (tokens) of a layer in one call, for which structures should be fast.",
)
latency_table_option = click.option(
    "--latency-table",
    type=FILE,
    help="Measurements of `calibrate-latency`; by default those included in lrcompress.",
)

metric_option = click.option(
    "--metric",
    type=click.Choice(METRIC_NAMES),
    help="Norm of a layer's error; by default two-sided with data, else plain.",
)

planning_options = gathered(
    PlanChoice,
    "planning",
    click.option(
        "--budget",
        multiple=True,
        metavar="BUDGET",
        help="What may remain: 50%, params=12M, flops=60%, bytes=40MB, latency=60%; repeatable, to "
        "limit several at once.",
    ),
    click.option(
        "--scope",
        type=click.Choice(SCOPE_NAMES),
        default="total",
        show_default=True,
        help="A percentage of the whole model, or of the layers that may change.",
    ),
    click.option(
        "--allocator",
        type=click.Choice(ALLOCATOR_NAMES),
        help="How the budget is divided among the layers; by default global, which is optimal, if "
        "the metric makes losses of layers comparable, else uniform.",
    ),
    metric_option,
    structures_option,
    formats_option,
    rows_option,
    latency_table_option,
    click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Change only layers whose name matches, for example 'encoder.*'; repeatable.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave layers whose name matches; repeatable.",
    ),
    click.option(
        "--multiple-of",
        type=click.IntRange(min=1),
        metavar="N",
        help="Ranks are multiples of this; by default of 8 in layers that are wide on both sides, "
        "of 1 elsewhere.",
    ),
    click.option(
        "--min-rank",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        show_default=True,
        help="Smallest rank that a layer may get.",
    ),
)
