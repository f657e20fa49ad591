"""The plan, layer by layer, and what it comes to."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.planning.plan import Plan
from lrcompress.reporting.collect import in_words
from lrcompress_cli.tables.names import without_common_prefix
from lrcompress_cli.tables.numbers import count, flops, optimality, real, share, size


class PlanTable:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plan = self._plan
        prefix, names = without_common_prefix([layer.name for layer in plan.layers])
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        table.add_column(f"layer {prefix}…" if prefix else "layer", overflow="fold", min_width=16)
        table.add_column("decision", no_wrap=True)
        for heading in ("params", "of dense", "pred. loss"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for layer, name in zip(plan.layers, names, strict=True):
            kept = layer.params / layer.dense_params
            dense = layer.params == layer.dense_params
            table.add_row(
                Text(name),
                in_words(layer.structure),
                count(layer.params),
                share(layer.params, layer.dense_params),
                real(layer.predicted_loss),
                Text("█" * round(10 * kept), style="dim" if dense else "cyan"),
            )
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
    table.add_row("budget", f"{plan.budget} of the {plan.budget.scope} model")
    loss = f"{real(plan.predicted_loss)} ({plan.metric} metric, {plan.allocator} allocation"
    if plan.optimality_gap is not None:
        loss += f", {optimality(plan.optimality_gap)}"
    table.add_row("pred. loss", loss + ")")
    return table
