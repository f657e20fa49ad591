"""A summary of a run: before and after, predicted and measured, checks, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.pipeline import NO_GRAPH, REPORT_HTML, REPORT_JSON, RunResult
from lrcompress.planning.plan import PlannedLayer
from lrcompress.reporting.report import Cost, Report
from lrcompress.structures import Dense, Structure, in_format
from lrcompress.tuning.report import TuneReport
from lrcompress_cli.tables.axes import axis_lines
from lrcompress_cli.tables.checks import check_table
from lrcompress_cli.tables.left_alone import LeftAloneTable
from lrcompress_cli.tables.names import cell
from lrcompress_cli.tables.numbers import agreement, count, flops, optimality, real, share, size


class Summary:
    def __init__(self, result: RunResult) -> None:
        self._result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self._result.report
        assert report.after is not None  # set in the report of a run
        yield _costs(report.before, report.after)
        yield Text("")
        yield _plan_line(self._result)
        if report.left_alone:
            yield Text("")
            yield LeftAloneTable(report.left_alone, report.before.params)
        if report.tried:
            yield Text("")
            yield selection_table(report)
        if report.divergences:
            yield Text("")
            yield _divergences(report)
        for doubt in report.doubts:
            yield Text("")
            style = "bold red" if doubt in report.severe_doubts else "bold yellow"
            yield cell(f"! {doubt}", style)
        if report.tuning is not None:
            yield Text("")
            yield _tuning_line(report.tuning)
        yield Text("")
        yield check_table(report.checks) if report.checks else cell(NO_GRAPH)
        if report.axes:
            yield Text("")
            yield axis_lines(report.axes)
        yield Text("")
        yield _files(self._result)


def _costs(before: Cost, after: Cost) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("")
    for heading in ("before", "after", "kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, dense, kept, shown in (
        ("parameters", before.params, after.params, count),
        ("size", before.bytes, after.bytes, size),
        ("work per example", before.flops_per_example, after.flops_per_example, flops),
    ):
        table.add_row(label, shown(dense), Text(shown(kept), style="bold"), share(kept, dense))
    return table


def _plan_line(result: RunResult) -> Text:
    plan = result.plan
    changed = [layer for layer in plan.layers if not isinstance(layer.structure, Dense)]
    gap = plan.optimality_gap
    proven = "" if gap is None else f", {optimality(gap)}"
    rounded = any(isinstance(in_format(layer.structure)[0], Dense) for layer in changed)
    how = "changed" if rounded else "factored"
    return cell(
        f"budget {result.report.budget}: {len(changed)} of {len(plan.layers)} layers {how}"
        f"{structures_taken(changed)}{_others_taken(result)} ({plan.metric} metric, "
        f"{plan.allocator} allocation{proven})"
    )


def _others_taken(result: RunResult) -> str:
    """ "; other weights (264 k parameters) in int8"; empty if they stay as they are."""
    format, others = result.plan.others, result.profile.others
    if others is None or format == "fp32":
        return ""
    return f"; other weights ({count(others.params)} parameters) in {format}"


def structures_taken(layers: Sequence[PlannedLayer]) -> str:
    """ ": 21 interpolative, 9 blast, 4 low rank in int4/32"; empty if all are low rank."""
    counts = Counter(_kind(layer.structure) for layer in layers)
    if not counts.keys() - {"low rank"}:
        return ""
    return ": " + ", ".join(f"{number} {name}" for name, number in counts.most_common())


def _kind(structure: Structure) -> str:
    inner, formats = in_format(structure)
    name = inner.type_name.replace("_", " ")
    return f"{name} in {' and '.join(map(str, formats))}" if formats else name


def _divergences(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column(cell(report.unit), overflow="fold")
    refitted = any(row.without_refit is not None for row in report.divergences)
    headings = ["predicted", "measured", *["with the refit"] * refitted]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.divergences:
        predicted = "" if row.predicted is None else real(row.predicted)
        first = row.measured if row.without_refit is None else row.without_refit
        table.add_row(cell(row.where), predicted, real(first), *[real(row.measured)] * refitted)
    for point in report.sweep:
        table.add_row(cell(f"at {point.budget}"), real(point.predicted), real(point.measured))
    for name, value in (report.fidelity or {}).items():
        table.add_row(cell(name), *[""] * (len(headings) - 1), agreement(value))
    return table


def selection_table(report: Report) -> Table:
    """The plans that were carried out, and which one was kept."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column(f"plans measured on {report.judging_examples} examples set aside")
    for heading in ("predicted", "measured", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.tried:
        name = row.name if row.metric in row.name else f"{row.name}, {row.metric}"
        table.add_row(
            cell(name), real(row.predicted), real(row.measured), "kept" if row.kept else ""
        )
    return table


def _tuning_line(tuning: TuneReport) -> Text:
    steps = f"{tuning.steps} steps at {tuning.learning_rate:g}"
    if tuning.restarts:
        steps += f", {tuning.restarts} restarts from the best point at half the rate"
    if not tuning.improved:
        return Text(f"tuning: nothing better was found; the weights are unchanged ({steps})")
    return cell(
        f"tuning: {tuning.measure} {real(tuning.start)} → {real(tuning.end)} on "
        f"{tuning.judging_examples} held-out examples ({steps}, best after {tuning.best_step})"
    )


def _files(result: RunResult) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for file in result.report.files:
        table.add_row(cell(result.folder / file.name), size(file.bytes))
    for name in (REPORT_JSON, REPORT_HTML):  # written after the report listed the files
        if (path := result.folder / name).is_file():
            table.add_row(cell(path), size(path.stat().st_size))
    return table
