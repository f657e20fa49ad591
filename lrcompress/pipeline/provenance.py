"""The metadata in a run's ONNX file that tell which plan it was made by."""

from __future__ import annotations

from dataclasses import replace

from lrcompress.export.export_options import ExportOptions
from lrcompress.planning.plan import Plan


def with_provenance(options: ExportOptions, plan: Plan) -> ExportOptions:
    """Return the options with the plan's facts in the metadata."""
    facts = {
        "source_fingerprint": plan.model_fingerprint,
        "budget": plan.budgets_in_words,
        "params": str(plan.params),
    }
    return replace(options, metadata={**options.metadata, **facts})
