"""The number formats that a plan may use, by what its budget limits.

Formats do not change what a budget of parameters or FLOPs counts. For bytes, 4 and 8 bits lose less
than low rank at the same size down to about 7 % of float32, and for latency on a CPU the integer
products of int8-dynamic do (benchmarks/bits.py). Formats of 2 bits are slower than dense on a CPU,
so they are taken only by name.
"""

from __future__ import annotations

from collections.abc import Collection

AUTO = "auto"
FOR_BYTES = ("fp32", "fp16", "int8/128", "int4/32", "int4/128")
FOR_LATENCY = ("fp32", "int8-dynamic")
FOR_LATENCY_ON_GPU = ("fp32", "int8/128", "int4/128")
# The formats of weights that are stored as they are, by the bytes of a parameter
STORED_IN = {4: ("fp32",), 2: ("fp16", "bf16")}


def default_formats(
    kinds: Collection[str], named: Collection[str] | None, provider: str = "cpu"
) -> tuple[str, ...]:
    """Return the formats to allow, as texts; empty: the stored one alone.

    kinds: of the budgets. named: by the user, in which "auto" stands for what suits the budgets
        (without a budget, for all of them).
    """
    wanted = named
    if wanted is None:
        wanted = (AUTO,) if {"bytes", "latency"} & set(kinds) else ()
    found: list[str] = []
    for text in wanted:
        found += _suitable(kinds, provider) if text == AUTO else [text]
    return () if set(found) == {"fp32"} else tuple(dict.fromkeys(found))


def _suitable(kinds: Collection[str], provider: str) -> list[str]:
    by_kind = {"bytes": FOR_BYTES, "latency": FOR_LATENCY_ON_GPU}
    if provider == "cpu":
        by_kind["latency"] = FOR_LATENCY
    chosen = [kind for kind in by_kind if kind in kinds] or [*by_kind]
    return [text for kind in chosen for text in by_kind[kind]]
