"""Claims of budgets: what people type is read, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrcompress.errors import PlanError
from lrcompress.planning.budget import UNITS, Budget, BudgetKind, amount_in_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%", Budget("params", 0.5, True)),
        ("params=50%", Budget("params", 0.5, True)),
        ("100%", Budget("params", 1.0, True)),
        (" params = 12M ", Budget("params", 12e6, False)),
        ("params=1.5B", Budget("params", 1.5e9, False)),
        ("flops=60%", Budget("flops", 0.6, True)),
        ("flops=3G", Budget("flops", 3e9, False)),
        ("bytes=40MB", Budget("bytes", 40e6, False)),
        ("bytes=40MiB", Budget("bytes", 40 * 2**20, False)),
        ("bytes=500kB", Budget("bytes", 500e3, False)),
        ("bytes=1GB", Budget("bytes", 1e9, False)),
        ("latency=60%", Budget("latency", 0.6, True)),
    ],
)
def test_budget_reads_what_people_type(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected
    assert Budget.parse(text, "compressible").scope == "compressible"


@pytest.mark.parametrize(
    "text",
    ["0", "0%", "-5%", "200%", "100.1%", "params=0", "nonsense", "", "%", "50%%", "0.5",
     "params=.5", "params=0.5", "50", "12M", "bytes=40XB", "flops=1GB", "params=1e9", "nan%",
     "latency=60ms", "latency=3G", "params=inf", "params=-3M", "\u0665\u0660%", "50% of it",
     "9" * 400 + "%"],
)  # fmt: skip
def test_budget_refuses_the_rest_in_one_line(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Budget.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    for form in ("50%", "params=12M", "flops=60%", "bytes=40MB"):
        assert form in message


@pytest.mark.parametrize(
    ("text", "hint"), [("0.5", "params=50%"), ("50", "params=50%"), ("12M", "params=12M"),
                       ("40MB", "bytes=40MB"), ("flops=0.6", "flops=60%")],
)  # fmt: skip
def test_budget_guesses_what_was_meant(text: str, hint: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"did you mean {hint}?")):
        Budget.parse(text)


@given(st.text(max_size=30))
def test_no_text_breaks_the_budget(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except PlanError:
        return
    assert Budget.parse(str(budget)) == budget


@given(st.sampled_from(list(UNITS)), st.floats(1e-6, 1, exclude_min=True))
def test_budget_shares_read_back(kind: BudgetKind, share: float) -> None:
    budget = Budget(kind, share, True)
    assert Budget.parse(str(budget)) == budget


@given(st.sampled_from([kind for kind in UNITS if kind != "latency"]), st.integers(2, 2**53))
def test_budget_counts_read_back(kind: BudgetKind, count: int) -> None:
    budget = Budget(kind, float(count), False)
    assert Budget.parse(str(budget)) == budget
    assert budget.limit(10**6) == count


def test_budget_share_is_the_decimal_that_was_typed() -> None:
    assert 0.29 * 100 < 29  # in floating point
    assert Budget.parse("29%").limit(100) == 29


@pytest.mark.parametrize(
    ("kind", "amount", "words"),
    [("params", 8_400_000, "8.4M parameters"), ("bytes", 33_600_000, "33.6MB on disk"),
     ("params", 12, "12 parameters"), ("flops", 2.5e9, "2.5G FLOPs per example"),
     ("latency", 2.5e9, "25 % of the dense latency")],
)  # fmt: skip
def test_amounts_in_words(kind: BudgetKind, amount: float, words: str) -> None:
    assert amount_in_words(kind, amount, 1e10) == words
