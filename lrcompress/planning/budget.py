"""Budgets: limits on the compressed model's parameters, FLOPs, bytes or latency."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import floor, isfinite
from typing import Final, Literal, cast, get_args

from lrcompress.errors import PlanError

BudgetKind = Literal["params", "flops", "bytes", "latency"]
Scope = Literal["total", "compressible"]

ACCEPTED_FORMS: Final = (
    "50%, params=50%, params=12M, flops=60%, flops=3G, bytes=60%, bytes=40MB, latency=60%"
)

_COUNTS: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS: Final[dict[BudgetKind, dict[str, int]]] = {
    "params": {**_COUNTS, "B": 10**9},
    "flops": _COUNTS,
    "bytes": {
        **{"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
        **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    },
    "latency": {"": 1},
}
_SHOWN: Final[dict[BudgetKind, tuple[str, ...]]] = {
    "params": ("k", "M", "G"),
    "flops": ("k", "M", "G", "T"),
    "bytes": ("kB", "MB", "GB", "TB"),
    "latency": (),
}
_NOUN: Final[dict[BudgetKind, str]] = {
    "params": " parameters",
    "flops": " FLOPs per example",
    "bytes": " on disk",
    "latency": " of the dense latency",
}
_FORM: Final = re.compile(
    r"(?:(?P<kind>[A-Za-z_]+)\s*=\s*)?"
    r"(?P<number>[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?P<unit>%|[A-Za-z]*)"
)


@dataclass(frozen=True)
class Costs:
    """The costs of a weight or a model. FLOPs are whole numbers, so that sums are exact."""

    params: int
    flops_per_example: float
    bytes: int
    latency_flops: float  # FLOPs per example that dense layers compute in the same time

    def of(self, kind: BudgetKind) -> int:
        flops, time = int(self.flops_per_example), int(self.latency_flops)
        return {"params": self.params, "flops": flops, "bytes": self.bytes, "latency": time}[kind]

    def plus(self, others: Iterable[Costs]) -> Costs:
        costs = [self, *others]
        return Costs(
            params=sum(one.params for one in costs),
            flops_per_example=sum(one.flops_per_example for one in costs),
            bytes=sum(one.bytes for one in costs),
            latency_flops=sum(one.latency_flops for one in costs),
        )


NOTHING = Costs(0, 0.0, 0, 0.0)


@dataclass(frozen=True)
class Budget:
    """A limit on a cost: a share in (0, 1] of the dense model's if `relative`, else a count.

    Scope "total" counts the whole model, like its file; "compressible" counts only the weights
    that may change, as papers do. Bytes are a share of the dense model in the export's precision.
    Latency is always a share of the dense model's. It is the layers' time from a table of
    measurements, expressed as the FLOPs that dense layers compute in that time.
    """

    kind: BudgetKind
    amount: float
    relative: bool
    scope: Scope = "total"

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise PlanError(f"budget kind {self.kind!r} is not one of {', '.join(UNITS)}")
        if self.scope not in get_args(Scope):
            raise PlanError(f"scope {self.scope!r} is not one of {', '.join(get_args(Scope))}")
        if not isfinite(self.amount) or self.amount <= 0:
            raise PlanError(f"a budget must be above zero; write one of {ACCEPTED_FORMS}")
        if self.kind == "latency" and not self.relative:
            raise PlanError("a latency budget is a share of the dense model's; write latency=60%")
        if self.relative and self.amount > 1:
            raise PlanError(
                f"a budget cannot be above 100 % of the dense model; write one of {ACCEPTED_FORMS}"
            )

    def halfway(self, dense: float) -> Budget:
        """Return the budget halfway between this one and the whole dense model.

        dense: the dense model's cost in the same kind.
        """
        whole = 1.0 if self.relative else max(dense, self.amount)
        return replace(self, amount=self.amount + (whole - self.amount) / 2)

    @classmethod
    def parse(cls, text: str, scope: Scope = "total") -> Budget:
        """Parse a budget typed by a user.

        Raises:
            PlanError: not one of the accepted forms, zero, negative, or above 100 %.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise _refusal(text, "is not understood")
        kind, number, unit = match["kind"], Decimal(match["number"]), match["unit"]
        if number <= 0:
            raise _refusal(text, "is not above zero")
        if kind is None and unit != "%":
            raise _refusal(text, "does not say of what" + _hint(number, unit))
        kind = kind or "params"
        if kind not in UNITS:
            raise _refusal(text, f"names {kind!r}, which is not one of {', '.join(UNITS)}")
        if unit == "%":
            if number > 100:
                raise _refusal(text, "is above 100 % of the dense model")
            return cls(cast(BudgetKind, kind), float(number / 100), True, scope)
        if kind == "latency":
            raise _refusal(text, "is not a share of the dense model's latency")
        scale = UNITS[cast(BudgetKind, kind)].get(unit)
        if scale is None:
            raise _refusal(text, f"has the unit {unit!r}, which {kind} does not take")
        if scale == 1 and number <= 1:
            raise _refusal(text, "is a bare fraction" + _hint(number, "", kind))
        return cls(cast(BudgetKind, kind), float(number * scale), False, scope)

    def limit(self, dense: int) -> int:
        """Return the largest allowed cost if the dense model (in this scope) costs `dense`.

        The share is taken as the decimal that was typed: 29 % of 100 is 29, not 28.999...
        """
        amount = Fraction(repr(float(self.amount)))
        return floor(amount * dense) if self.relative else floor(amount)

    def __str__(self) -> str:
        """Format the budget so that `parse` returns an equal one."""
        amount = Decimal(repr(float(self.amount)))
        if self.relative:
            return f"{self.kind}={_plain(amount * 100)}%"
        unit = _largest_unit(self.kind, self.amount)
        return f"{self.kind}={_plain(amount / UNITS[self.kind][unit])}{unit}"


def parsed_budgets(budgets: Budget | str | Iterable[Budget | str]) -> tuple[Budget, ...]:
    """Return budgets given as one or several, as texts or values.

    Raises:
        PlanError: a text is not a budget.
    """
    given = [budgets] if isinstance(budgets, Budget | str) else budgets
    return tuple(Budget.parse(one) if isinstance(one, str) else one for one in given)


def amount_in_words(kind: BudgetKind, amount: float, dense: float) -> str:
    """Format an amount with its unit: 8400000 parameters become "8.4M parameters".

    dense: the dense model's amount. A latency is given as a share of it, "56.9 % of the dense
    latency": a plan counts it in FLOPs, which is no unit of time.
    """
    if kind == "latency":
        return f"{100 * amount / dense:.4g} %{_NOUN[kind]}"
    unit = _largest_unit(kind, amount)
    scaled = amount / UNITS[kind][unit]
    shown = f"{scaled:.3g}" if scaled < 1000 else f"{scaled:.0f}"
    return f"{shown}{unit}{_NOUN[kind]}"


def _largest_unit(kind: BudgetKind, amount: float) -> str:
    fitting = [unit for unit in _SHOWN[kind] if UNITS[kind][unit] <= amount]
    return fitting[-1] if fitting else ""


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _hint(number: Decimal, unit: str, kind: str = "params") -> str:
    if not unit:
        percent = number * 100 if number <= 1 else number
        if percent <= 100:
            return f" (did you mean {kind}={_plain(percent)}%?)"
    for guess, units in UNITS.items():
        if unit in units and guess != "latency":
            return f" (did you mean {guess}={_plain(number)}{unit}?)"
    return ""


def _refusal(text: str, why: str) -> PlanError:
    shown = text if len(text) <= 40 else text[:37] + "..."
    return PlanError(f"budget {shown!r} {why}; write one of {ACCEPTED_FORMS}")
