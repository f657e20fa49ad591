"""A table of the plan, layer by layer, with its totals."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.planning.plan import Plan
from lrcompress.reporting.collect import in_words
from lrcompress_cli.tables.names import cell, fitted
from lrcompress_cli.tables.numbers import count, flops, optimality, real, share, size

WIDE = 100  # minimum width for a bar
BAR = 20
FIGURES, FIGURES_WIDE = 38, 59  # width of the figures


class PlanTable:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plan = self._plan
        wide = options.max_width >= WIDE
        room = options.max_width - (FIGURES_WIDE if wide else FIGURES)
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        table.add_column("layer", overflow="fold", min_width=16)
        table.add_column("decision", no_wrap=True)
        for heading in ("params", "of dense", "pred. loss"):
            table.add_column(heading, justify="right", no_wrap=True)
        if wide:
            table.add_column("", no_wrap=True)
        for layer in plan.layers:
            dense = layer.params == layer.dense_params
            cells: list[RenderableType] = [
                cell(fitted(layer.name, room)),
                cell(in_words(layer.structure), "dim" if dense else ""),
                count(layer.params),
                share(layer.params, layer.dense_params),
                real(layer.predicted_loss),
            ]
            if wide:
                blocks = "█" * round(BAR * layer.params / layer.dense_params)
                cells.append(Text(blocks, style="dim" if dense else "cyan"))
            table.add_row(*cells)
        yield table
        yield Text("")
        yield totals(plan)


def totals(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, dense, kept, shown in (
        ("parameters", plan.dense_params, plan.params, count),
        ("size", plan.dense_bytes, plan.bytes, size),
        ("work/example", plan.dense_flops_per_example, plan.flops_per_example, flops),
    ):
        table.add_row(label, f"{shown(dense)} → {shown(kept)}  ({share(kept, dense)})")
    table.add_row("budget", f"{plan.budgets_in_words} of the {plan.budget.scope} model")
    loss = f"{real(plan.predicted_loss)} ({plan.metric} metric, {plan.allocator} allocation"
    if plan.optimality_gap is not None:
        loss += f", {optimality(plan.optimality_gap)}"
    table.add_row("pred. loss", loss + ")")
    if plan.others != "fp32":
        table.add_row("other weights", f"{plan.others} (loss {real(plan.others_loss)})")
    return table
