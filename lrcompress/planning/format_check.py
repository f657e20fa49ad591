"""Which number formats a plan may use, and refusals of those that it cannot."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lrcompress.errors import PlanError
from lrcompress.number_formats import GridFormat, parse_format
from lrcompress.planning.budget import Budget
from lrcompress.planning.default_formats import STORED_IN
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.profile import Profile

COUNTING = ("bytes", "latency")  # the kinds of budgets that formats change


def allowed_formats(
    profile: Profile, kinds: Collection[str], options: PlanOptions
) -> tuple[str, ...]:
    """Return the formats that weights may have, as texts; empty: the stored one alone.

    By default they are all that the profile measured and the provider can run. Those that round
    inputs too are for speed, so that by default only a budget of latency takes them.
    """
    if not set(COUNTING) & set(kinds):
        return ()
    if options.formats:
        return options.formats
    return tuple(
        text
        for text in profile.formats
        if options.provider in parse_format(text).providers
        and ("latency" in kinds or not _rounds_inputs(text))
    )


def check_named_formats(budgets: Sequence[Budget], options: PlanOptions) -> None:
    """Raise PlanError for named formats that change nothing, or that the provider cannot run."""
    named = _named(options)
    if named and budgets and not any(budget.kind in COUNTING for budget in budgets):
        raise PlanError(
            f"budget {budgets[0]}: the number of {budgets[0].kind} is the same in every format "
            f"({', '.join(named)}); use --budget bytes=... or latency=..., or leave --formats out"
        )
    for text in named:
        providers = parse_format(text).providers
        if options.provider not in providers:
            raise PlanError(
                f"format {text}: the provider {options.provider} has no kernel for it; use another "
                f"format, or --provider {providers[0]}"
            )


def check_formats(profile: Profile, budgets: Sequence[Budget], options: PlanOptions) -> None:
    """Raise PlanError as `check_named_formats`, or for a format that was not measured."""
    check_named_formats(budgets, options)
    for text in _named(options):
        if text not in profile.formats:
            raise PlanError(
                f"the profile has no loss curves of the format {text}, only of "
                f"{', '.join(profile.formats) or 'the stored one'}; profile again with "
                f"--formats {text}"
            )


def _named(options: PlanOptions) -> list[str]:
    stored = STORED_IN.get(options.bytes_per_param, ())
    return [text for text in options.formats if text not in stored]


def _rounds_inputs(text: str) -> bool:
    format = parse_format(text)
    return isinstance(format, GridFormat) and format.activations
