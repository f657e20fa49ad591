"""The JSON objects that commands print; docs/cli.md documents each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lrcompress.json_dataclasses import to_json
from lrcompress.structures.serial import structure_to_json

if TYPE_CHECKING:
    from lrcompress.pipeline import Preview, ProfileResult, RunResult
    from lrcompress.planning.plan import Plan
    from lrcompress.reporting.report import Report


def profile_record(result: ProfileResult) -> dict[str, Any]:
    report = result.report
    return {
        "folder": str(result.folder),
        **_head(report),
        "dense": to_json(report.before),
        "layers": _layers(report),
        **_left_alone(report),
        **_tail(report),
    }


def plan_record(plan: Plan) -> dict[str, Any]:
    return {
        "budget": str(plan.budget),
        "also": [str(one.budget) for one in plan.also],
        "scope": plan.budget.scope,
        "metric": plan.metric,
        "allocator": plan.allocator,
        "dense": _cost(plan.dense_params, plan.dense_bytes, plan.dense_flops_per_example),
        "planned": _cost(plan.params, plan.bytes, plan.flops_per_example),
        "within_budget": plan.within_budget,
        "predicted_loss": plan.predicted_loss,
        "optimality_gap": plan.optimality_gap,
        "warnings": list(plan.warnings),
        "layers": [
            {
                "name": layer.name,
                "structure": structure_to_json(layer.structure),
                "dense_params": layer.dense_params,
                "params": layer.params,
                "flops_per_example": layer.flops_per_example,
                "predicted_loss": layer.predicted_loss,
            }
            for layer in plan.layers
        ],
    }


def preview_record(preview: Preview) -> dict[str, Any]:
    return {"dry_run": True, "plan": plan_record(preview.plan), "axes": list(preview.axes)}


def compress_record(result: RunResult) -> dict[str, Any]:
    report, plan = result.report, result.plan
    return {
        "folder": str(result.folder),
        **_head(report),
        "budget": str(plan.budget),
        "also": [str(one.budget) for one in plan.also],
        "scope": plan.budget.scope,
        "allocator": plan.allocator,
        "dense": to_json(report.before),
        "compressed": to_json(report.after),
        **_left_alone(report),
        "predicted_loss": plan.predicted_loss,
        "optimality_gap": plan.optimality_gap,
        "tried": to_json(report.tried),
        "judging_examples": report.judging_examples,
        "divergences": to_json(report.divergences),
        "trusted": report.trusted,
        "doubts": list(report.doubts),
        "severe_doubts": list(report.severe_doubts),
        "sweep": to_json(report.sweep),
        "fidelity": to_json(report.fidelity),
        "tuning": _tuning(report),
        "verified": report.verified,
        "checks": to_json(report.checks),
        "axes": list(report.axes),
        **_tail(report),
    }


def tune_record(result: RunResult) -> dict[str, Any]:
    report = result.report
    return {
        "folder": str(result.folder),
        **_head(report),
        "compressed": to_json(report.after),
        "trusted": report.trusted,
        "doubts": list(report.doubts),
        "severe_doubts": list(report.severe_doubts),
        "tuning": _tuning(report),
        "verified": report.verified,
        "checks": to_json(report.checks),
        "axes": list(report.axes),
        **_tail(report),
    }


def _tuning(report: Report) -> dict[str, Any] | None:
    """Return the tuning report without the loss of every step."""
    if report.tuning is None:
        return None
    return {key: value for key, value in to_json(report.tuning).items() if key != "losses"}


def _head(report: Report) -> dict[str, Any]:
    return {
        "model": report.model,
        "metric": report.metric,
        "objective": report.objective,
        "readout": list(report.readout),
        "examples": report.examples,
        "tokens": report.tokens,
    }


def _left_alone(report: Report) -> dict[str, Any]:
    return {
        "left_alone": to_json(report.left_alone),
        "left_alone_share": report.left_alone_share,
    }


def _tail(report: Report) -> dict[str, Any]:
    return {
        "files": {file.name: file.bytes for file in report.files},
        "stages": to_json(report.stages),
        "warnings": list(report.warnings),
    }


def _layers(report: Report) -> list[dict[str, Any]]:
    """Return the layers without the spectra and the plan's fields, which are in report.json."""
    absent = (
        "spectra", "structure", "rank", "params_kept", "predicted_loss", "saved", "note", "format",
        "bytes_kept",
    )  # fmt: skip
    return [
        {key: value for key, value in to_json(layer).items() if key not in absent}
        for layer in report.layers
    ]


def _cost(params: int, size: int, flops: float) -> dict[str, Any]:
    return {"params": params, "bytes": size, "flops_per_example": flops}
