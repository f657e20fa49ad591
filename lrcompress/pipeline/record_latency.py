"""Record the latencies that a later benchmark measured in the report of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from lrcompress.errors import ModelError, PlanError
from lrcompress.fingerprint import model_fingerprint
from lrcompress.formats.run_json import read_record
from lrcompress.network.function_sketch import function_differs
from lrcompress.pipeline.options import FolderOptions
from lrcompress.pipeline.stages.report import REPORT_HTML, REPORT_JSON, read_report, write_report

Recorded = Literal["recorded", "another model", "no report"]


def record_latency(
    root: Path, dense_ms: float, compressed_ms: float, *, made_from_it: bool
) -> Recorded:
    """Write a bench's median latencies into a run's report; return what was done.

    made_from_it: the run was made from the timed dense model. If False, nothing is written.

    Raises:
        LrcompressError: the report cannot be read or written.
    """
    path = root / REPORT_JSON
    if not path.is_file():
        return "no report"
    report = read_report(path)
    if report.after is None:
        return "no report"
    if not made_from_it:
        return "another model"
    report = replace(
        report,
        before=replace(report.before, latency_ms=dense_ms),
        after=replace(report.after, latency_ms=compressed_ms),
    )
    write_report(report, FolderOptions(root, report=(root / REPORT_HTML).is_file()))
    return "recorded"


def is_made_from(root: Path, module: nn.Module) -> bool:
    """Return whether the run in a folder was made from `module`, taken before any conversion."""
    try:
        record = read_record(root)
    except (ModelError, PlanError):
        return False  # a report without its run
    known = record.unconverted_fingerprint or record.source_fingerprint
    if model_fingerprint(module) != known:
        return False
    function = None if record.source_identity is None else record.source_identity.function
    return function is None or function_differs(function, module) is None
