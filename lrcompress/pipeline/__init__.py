"""The whole way from a model to a verified ONNX file, over a folder that any run can resume."""

from __future__ import annotations

from lrcompress.pipeline.exporting import budget_facts
from lrcompress.pipeline.measuring import find_profile
from lrcompress.pipeline.options import (
    FolderOptions,
    Preview,
    ProfileResult,
    RunOptions,
    RunResult,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
)
from lrcompress.pipeline.recording import is_made_from, record_latency
from lrcompress.pipeline.reporting import REPORT_HTML, REPORT_JSON
from lrcompress.pipeline.retuning import run_tune
from lrcompress.pipeline.verbs import preview, promised_budget, run, run_profile

__all__ = [
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
    "find_profile",
    "is_made_from",
    "preview",
    "promised_budget",
    "record_latency",
    "run",
    "run_profile",
    "run_tune",
]
