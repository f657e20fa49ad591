"""The pipeline from a model to a verified ONNX file, with a run folder that can be resumed."""

from __future__ import annotations

from lrcompress.pipeline.options import (
    FolderOptions,
    Preview,
    ProfileResult,
    RunOptions,
    RunResult,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
    export_within,
)
from lrcompress.pipeline.record_latency import is_made_from, record_latency
from lrcompress.pipeline.run import budgets_of_run, preview, promised_budget, run, run_profile
from lrcompress.pipeline.run_tune import run_tune
from lrcompress.pipeline.stages.deliver import NO_GRAPH
from lrcompress.pipeline.stages.export import budget_facts
from lrcompress.pipeline.stages.profile import find_profile
from lrcompress.pipeline.stages.report import REPORT_HTML, REPORT_JSON

__all__ = [
    "NO_GRAPH",
    "REPORT_HTML",
    "REPORT_JSON",
    "FolderOptions",
    "Preview",
    "ProfileResult",
    "RunOptions",
    "RunResult",
    "SourceOptions",
    "TuneRequest",
    "TuneRunOptions",
    "budget_facts",
    "budgets_of_run",
    "export_within",
    "find_profile",
    "is_made_from",
    "preview",
    "promised_budget",
    "record_latency",
    "run",
    "run_profile",
    "run_tune",
]
