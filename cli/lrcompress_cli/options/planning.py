"""Budgets and what is free to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.planning.plan import PlanOptions

    from lrcompress.planning.budget import Budget

ALLOCATOR_NAMES = ("global", "uniform", "energy", "scaled-stable-rank")
SCOPE_NAMES = ("total", "compressible")
BYTES_PER_PARAM = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class PlanChoice:
    budget: str | None
    scope: str
    allocator: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    multiple_of: int
    min_rank: int

    def parsed_budget(self) -> Budget | None:
        """Raises a usage error that names the accepted forms."""
        from lrcompress.errors import PlanError
        from lrcompress.planning.budget import Budget

        if self.budget is None:
            return None
        try:
            return Budget.parse(self.budget, scope=self.scope)
        except PlanError as error:
            raise click.UsageError(f"--budget: {error}", click.get_current_context()) from error

    def options(self, *, metric: str | None, precision: str = "fp32") -> PlanOptions:
        from lrcompress.planning.plan import PlanOptions

        return PlanOptions(
            allocator=self.allocator,
            metric=metric,
            multiple_of=self.multiple_of,
            min_rank=self.min_rank,
            include=self.include,
            exclude=self.exclude,
            bytes_per_param=BYTES_PER_PARAM[precision],
        )


planning_options = gathered(
    PlanChoice,
    "planning",
    click.option(
        "--budget",
        metavar="BUDGET",
        help="What may remain: 50%, params=12M, flops=60%, bytes=40MB.",
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
        default="global",
        show_default=True,
        help="Who decides each layer's rank; global is optimal, the others are for comparison.",
    ),
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
        default=1,
        show_default=True,
        help="Ranks are multiples of this; 8 suits a GPU.",
    ),
    click.option(
        "--min-rank",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Smallest rank that a layer may get.",
    ),
)
