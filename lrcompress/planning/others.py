"""The format of the weights that no layer holds: what a plan may choose, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.errors import PlanError
from lrcompress.number_formats import GridFormat, parse_format
from lrcompress.planning.budget import Budget
from lrcompress.planning.format_check import allowed_formats
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.profile import Profile

FP32 = "fp32"


def others_choices(
    profile: Profile, budgets: Sequence[Budget], options: PlanOptions
) -> tuple[str, ...]:
    """Return the formats to plan with, one plan for each.

    They are those of the weights of layers that are measured for other weights too, where a budget
    counts the bytes of the whole file, and no pattern restricts what may change.
    """
    if options.others is not None:
        return (options.others,)
    counted = any(budget.kind == "bytes" and budget.scope == "total" for budget in budgets)
    if not counted or options.bytes_per_param != 4 or options.include or options.exclude:
        return (FP32,)
    allowed = allowed_formats(profile, {budget.kind for budget in budgets}, options)
    found = {_as_others(text) for text in allowed}
    return (FP32, *(format for format in _measured(profile) if format in found - {FP32}))


def check_others(profile: Profile, options: PlanOptions) -> None:
    """Raise PlanError for a format that was not measured, or that cannot hold the weights."""
    if options.others not in {None, FP32, *_measured(profile)}:
        raise PlanError(
            f"others: the profile has no loss of other weights in {options.others}; write {FP32}, "
            "or profile again with --formats (a format that cannot hold their values has none)"
        )


def saved_bytes(profile: Profile, options: PlanOptions) -> int:
    """Return how many bytes fewer the other weights take than in the export's precision."""
    others = profile.others
    if others is None or options.others in (None, FP32):
        return 0
    assert options.others is not None
    return others.params * options.bytes_per_param - others.bytes[options.others]


def others_loss(profile: Profile, options: PlanOptions) -> float:
    """Return the measured loss of the other weights in their format, per example."""
    if profile.others is None or options.others is None:
        return 0.0
    return profile.others.losses.get(options.others, 0.0)


def _measured(profile: Profile) -> tuple[str, ...]:
    return () if profile.others is None else tuple(profile.others.losses)


def _as_others(text: str) -> str:
    """Return the format of other weights that belongs to a format of layers' weights."""
    format = parse_format(text)
    if isinstance(format, GridFormat):
        return "int8"
    return text if text == "fp16" else FP32
